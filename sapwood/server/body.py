"""Bodies: a request's, read within a limit, decoded into typed structs, every fault a RequestError that names the field; and
an answer's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import zlib
from typing import Any, Generic, TypeVar

import anyio.to_thread
import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.base.handoff import Offer
from sapwood.server.errors import ClientGone
from sapwood.server.front import Front
from sapwood.server.handoff import FIELDS, HEADER, Handing
from sapwood.server.passage import passage
from sapwood.server.refusals import Table, refuse

T = TypeVar("T")

_LARGE = 64 << 10  # bytes from which decoding would hold up the event loop noticeably
_CHECKED_FOR_REPEATS = 1 << 20  # larger bodies are long prompts; reading them twice is not worth it
_DISCARDED_LIMITS = 4  # how far beyond the limit a body is read to its end, in limits
_DISCARDED_SECONDS = 5.0
_CODINGS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `(.*)`")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])  # no value is looked at


class Body(Generic[T]):
    """Reads bodies of one type: `await body(request)`.

    Fields that are not declared are ignored, but for those of `refused`. With `optional` no body at all is an empty object.
    The server's limit of bytes is enforced while reading, whatever Content-Length says. What the caller does next, up to its
    next wait, is its turn.
    """

    def __init__(self, type: type[T], front: Front, *, refused: Table | None = None, optional: bool = False) -> None:
        self._decoder = msgspec.json.Decoder(type)
        self._handing = front.handing
        kept = FIELDS if self._handing is not None else ()
        self._refused = {name: why for name, why in (refused or {}).items() if name not in kept}
        self._missing = b"{}" if optional else b""
        self._limit = front.config.server.max_body_bytes
        self._turn = front.turns

    async def __call__(self, request: Request) -> T:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(
                f"The body must be application/json, not {kind}: send the header Content-Type: application/json.",
                status=415,
            )
        raw = await unpacked(request.headers, await read_body(request, self._limit), self._limit)
        if len(raw) < _LARGE:
            await self._turn()
            body = self._decode(raw)
        else:
            body = await anyio.to_thread.run_sync(self._decode, raw)
            await self._turn()
        if self._handing is not None:
            _hand(self._handing, raw, request)
        return body

    def _decode(self, raw: bytes) -> T:
        raw = raw if raw.strip() else self._missing
        if not raw:
            raise RequestError("The body is empty; it must be a JSON object.")
        try:
            body = self._decoder.decode(raw)
            if self._refused:
                refuse(self._refused, _FIELDS.decode(raw))
            if len(raw) <= _CHECKED_FOR_REPEATS:
                json.loads(raw, object_pairs_hook=_refuse_repeats)
            return body
        except msgspec.ValidationError as error:
            raise field_error(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            field = _unwritable(raw) if len(raw) <= _CHECKED_FOR_REPEATS else None
            raise RequestError(
                f"{field}: {error}." if field else f"The body is not valid JSON: {error}.", param=field
            ) from None
        except RecursionError:
            raise RequestError("The body is nested too deeply.") from None


def _hand(handing: Handing, raw: bytes, request: Request) -> None:
    """Note what a body says of prompts that go from server to server."""
    try:
        handoff = handing.read(raw)
    except msgspec.ValidationError as error:
        raise field_error(error) from None
    note = passage(request.scope, request._send)
    note.handoff = handoff
    if isinstance(handoff, Offer):
        note.handed = handing.told(handoff)
        note.told.append((HEADER, msgspec.json.encode(note.handed)))


async def unpacked(headers: Headers, raw: bytes, limit: int) -> bytes:
    """The body as it was before it was compressed, within the limit too. Raises RequestError."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return raw
    if coding not in _CODINGS:
        raise RequestError(
            f"The body's encoding {coding!r} is not supported: send it as gzip, deflate, or as it is.", status=415
        )
    return await anyio.to_thread.run_sync(_inflate, raw, coding, limit)


def json_response(body: msgspec.Struct | list[Any], status: int = 200) -> Response:
    return json_text(msgspec.json.encode(body), status)


def json_text(body: str | bytes, status: int = 200) -> Response:
    """An answer that is JSON already."""
    return Response(body, status, headers={"content-type": "application/json"})


def _inflate(raw: bytes, coding: str, limit: int) -> bytes:
    """Raises RequestError for what is not compressed so, cut off, or larger than the limit."""
    # What is sent as deflate is mostly in zlib's frame, as it should be, and sometimes without.
    wrapped = coding != "deflate" or (len(raw) > 1 and raw[0] & 0x0F == 8 and int.from_bytes(raw[:2], "big") % 31 == 0)
    unpacker = zlib.decompressobj(_CODINGS[coding] if wrapped else -zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(raw, limit + 1)
    except zlib.error as error:
        raise RequestError(f"The body is not {coding}: {error}.") from None
    if len(body) > limit:
        raise RequestError(f"The body is larger than the limit of {limit} bytes.", status=413)
    if not unpacker.eof:
        raise RequestError(f"The body's {coding} is cut off.")
    return body


def field_error(error: msgspec.ValidationError, *, within: str = "") -> RequestError:
    """The RequestError of a value of a wrong type. `within` is the path of the struct that was being converted."""
    text = str(error)
    found = _PATH.search(text)
    path = ".".join(filter(None, (within, found[1] if found else "")))
    message = text[: found.start()] if found else text
    missing = _MISSING.search(message)
    if missing and not path:
        return RequestError(f"{missing[1]} is missing.", param=missing[1])
    return RequestError(f"{path}: {message}." if path else f"{message}.", param=path or None)


def _unwritable(raw: bytes) -> str | None:
    """The path of the first value that Python's lenient reader knows but JSON does not: NaN, a lone surrogate."""
    try:
        pending: list[tuple[str, Any]] = [("", json.loads(raw))]
    except (ValueError, RecursionError):
        return None
    while pending:
        path, value = pending.pop()
        match value:
            case dict():
                if any(map(_surrogate, value)):
                    return path or None
                pending += reversed([(f"{path}.{key}" if path else key, inner) for key, inner in value.items()])
            case list():
                pending += reversed([(f"{path}[{index}]", inner) for index, inner in enumerate(value)])
            case float() if not math.isfinite(value):
                return path or None
            case str() if _surrogate(value):
                return path or None
    return None


def _surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


async def read_body(request: Request, limit: int) -> bytes:
    """A whole body as it was sent. Raises RequestError (413) for one that is longer, ClientGone for one that is cut off."""
    length = request.headers.get("content-length", "")
    fits = not length.isdecimal() or int(length) <= limit
    raw = bytearray()
    try:
        if fits:
            async for chunk in request.stream():
                raw += chunk
                fits = len(raw) <= limit
                if not fits:
                    break
        if not fits:
            await _discard(request, _DISCARDED_LIMITS * limit - len(raw))
            raise RequestError(f"The body is larger than the limit of {limit} bytes.", status=413)
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(raw)


async def _discard(request: Request, at_most: int) -> None:
    """Read on for a while: many clients send all before they read, and would see a reset instead of the answer."""
    if "expect" in request.headers:  # this one waits for us
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDED_SECONDS):
            while at_most > 0:
                message = await request.receive()
                at_most -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"The key {name!r} is given more than once.", param=name)
    return fields
