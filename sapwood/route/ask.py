"""What the router reads of a request: the model it wants, whom it belongs to, and how its prompt begins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import msgspec

from sapwood.base.errors import RequestError

_BLOCK = 256  # bytes of a prompt that are told apart; about 64 tokens
_LONGEST = 512  # blocks that are looked at
_OPENING = ("tools", "system", "instructions")  # what templates put before everything else, in this order
_PROMPT = ("messages", "prompt", "input", "text", "contents")
_SESSION = ("prompt_cache_key", "conversation", "previous_response_id", "user")


class Ask:
    """The body of a request, read only as far as its outermost fields."""

    def __init__(self, path: str, body: bytes, headers: Mapping[str, str], *, session_header: str = "") -> None:
        """Raises RequestError (400) for a JSON body that is no object."""
        self.path, self.body = path, body
        self._headers, self._session_header = headers, session_header
        self._fields: dict[str, msgspec.Raw] = {}
        if body and "json" in headers.get("content-type", "application/json"):
            try:
                self._fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            except msgspec.DecodeError as error:
                raise RequestError(f"The body is no JSON object: {error}.", code="invalid_json") from error
        self.model = self._text("model")

    @property
    def streams(self) -> bool:
        """Whether it says that its answer is to come in pieces."""
        return bytes(self._fields.get("stream", b"")) == b"true"

    @cached_property
    def session(self) -> str | None:
        """What tells that requests belong together, if anything does: a header, or a field of the body."""
        if found := self._headers.get(self._session_header):
            return found
        return next((text for name in _SESSION if (text := self._text(name))), None)

    @cached_property
    def blocks(self) -> list[int]:
        """A number for each block of the prompt, of it and of all before it: equal beginnings have equal ones."""
        fields, model = self._fields, (self.model or "").encode()
        prompt = b"".join(bytes(fields[name]) for name in (*_OPENING, *_PROMPT) if name in fields)
        numbers, number = [], hash(model)
        for start in range(0, min(len(prompt) - _BLOCK + 1, _LONGEST * _BLOCK), _BLOCK):
            number = hash((number, prompt[start : start + _BLOCK]))
            numbers.append(number)
        return numbers

    def named(self, model: str) -> bytes:
        """The body, asking for a model of that name."""
        if model == self.model or "model" not in self._fields:
            return self.body
        return msgspec.json.encode(self._fields | {"model": msgspec.Raw(msgspec.json.encode(model))})

    def changed(self, body: bytes) -> Ask:
        """The same request with another body, which is JSON."""
        return Ask(self.path, body, self._headers, session_header=self._session_header)

    def _text(self, name: str) -> str | None:
        if (raw := self._fields.get(name)) is None:
            return None
        try:
            return msgspec.json.decode(raw, type=str)
        except msgspec.ValidationError:
            return None
