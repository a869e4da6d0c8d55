"""Responses that are kept: the conversations that they continue, and what is told of them later."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.openai.responses.items import Item
from sapwood.server.openai.responses.objects import Failure, Response
from sapwood.server.store import Books, Store

KIND = "response"
RUNNING = ("queued", "in_progress")

_MOST_TURNS = 10_000
_END = b"\n\n"  # of an event


class Record(msgspec.Struct):
    """What belongs to a response beside itself: its own input, and its events, packed, where it ran in the background."""

    input: list[Item]
    packed: bytes | None = None

    def events(self, at: int) -> bytes | None:
        """Those from number `at` on."""
        if self.packed is None:
            return None
        return _END.join(zlib.decompress(self.packed).split(_END)[at:])


class Kept(msgspec.Struct):
    """What is read of a kept response."""

    output: list[Item]
    previous_response_id: str | None = None
    status: str = "completed"
    background: bool = False


def keep(store: Store, owner: str, response: Response, items: list[Item], events: Sequence[bytes] | None) -> None:
    """Before anything that is asked of the store later. `events`: all, if they may be asked for again."""
    id, body = response.id, msgspec.json.encode(response).decode()

    def put(books: Books) -> None:
        packed = None if events is None else zlib.compress(b"".join(events))  # they repeat one another
        books.put(KIND, owner, id, body, msgspec.json.encode(Record(items, packed)))

    store.soon(put)


async def find(store: Store, owner: str, id: str) -> tuple[str, Kept, Record]:
    """A response as it is told, and what is known of it. Raises RequestError (404)."""
    thing = await store.run(lambda books: books.get(KIND, owner, id))
    if thing is None:
        raise unknown(id)
    return thing.body, msgspec.json.decode(thing.body, type=Kept), msgspec.json.decode(thing.more, type=Record)


def unknown(id: str) -> RequestError:
    return RequestError(
        f"There is no response {id!r}: it was not stored, was deleted, or made room for newer ones.", status=404
    )


async def context(store: Store, owner: str, id: str | None) -> list[Item]:
    """All items of a response and of those before it, in order: what a next one continues. Raises RequestError."""
    if id is None:
        return []
    return await store.run(lambda books: _context(books, owner, id))


def _context(books: Books, owner: str, id: str) -> list[Item]:
    turns: list[list[Item]] = []
    at: str | None = id
    while at is not None and len(turns) < _MOST_TURNS:
        thing = books.get(KIND, owner, at)
        if thing is None:
            raise RequestError(
                f"previous_response_id: there is no response {at!r}; it was not stored, was deleted, or made room for "
                "newer ones. Give all items as input instead.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        kept = msgspec.json.decode(thing.body, type=Kept)
        if kept.status in RUNNING:
            raise RequestError(
                f"previous_response_id: the response {at!r} is not complete yet.", param="previous_response_id"
            )
        turns.append([*msgspec.json.decode(thing.more, type=Record).input, *kept.output])
        at = kept.previous_response_id
    return [item for turn in reversed(turns) for item in turn]


def lost(body: str) -> bytes:
    """What is told of a response that was running when its server ended."""
    response: dict[str, Any] = msgspec.json.decode(body)
    error = Failure("server_error", "The server was restarted before the response was complete.")
    return msgspec.json.encode(response | {"status": "failed", "error": error})
