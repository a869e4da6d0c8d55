"""How many tokens messages have: estimated by their bytes, or counted by a server, each message once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from sapwood.route.inner import Inner, Unanswered
from sapwood.route.sizes import estimated

_MARKUP = 4  # tokens around a message, in the templates of today
_MOST = 50_000
_AT_ONCE = 8
_TIMEOUT = 10.0


class Counted(NamedTuple):
    """`how` they were counted, for whoever reads the numbers."""

    tokens: list[int]
    how: str


class Counter(Protocol):
    async def of(self, values: Sequence[Any]) -> Counted:
        """Tokens of each value: messages, tools, a system prompt."""


class Estimate:
    """By the bytes of their JSON."""

    async def of(self, values: Sequence[Any]) -> Counted:
        return Counted([estimated(msgspec.json.encode(value)) + _MARKUP for value in values], "estimated")


class Tokenized:
    """By /tokenize of a server that has the model; all are estimated where it does not answer. What was counted last is kept, so that
    a turn asks for its new messages only."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def by(self, model: str) -> _Of:
        """A counter by that model's tokenizer."""
        return _Of(self, model)

    async def count(self, model: str, text: bytes, turn: asyncio.Semaphore) -> int:
        """Raises Unanswered."""
        key = hashlib.blake2b(model.encode() + b"\0" + text, digest_size=16).digest()
        if (found := self._kept.get(key)) is None:
            async with turn:
                body = {"prompt": text.decode(), "add_special_tokens": False}
                said = await self._inner.ask(model, "/tokenize", body, timeout=_TIMEOUT)
            if not isinstance(found := said.get("count"), int):
                raise Unanswered(f"{model} counts no tokens")
            self._kept[key] = found
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return found


class _Of:
    def __init__(self, tokenized: Tokenized, model: str) -> None:
        self._tokenized, self._model = tokenized, model

    async def of(self, values: Sequence[Any]) -> Counted:
        turn = asyncio.Semaphore(_AT_ONCE)
        texts = [msgspec.json.encode(value) for value in values]
        asked = [self._tokenized.count(self._model, text, turn) for text in texts]
        found = await asyncio.gather(*asked, return_exceptions=True)
        counts = [one + _MARKUP for one in found if isinstance(one, int)]
        if len(counts) == len(values):
            return Counted(counts, "tokenize")
        if errors := [one for one in found if isinstance(one, BaseException) and not isinstance(one, Unanswered)]:
            raise errors[0]
        return await Estimate().of(values)
