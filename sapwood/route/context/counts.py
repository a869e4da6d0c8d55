"""How many tokens messages have: estimated by their bytes, or counted by a server, each message once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec

from sapwood.route.inner import Inner, Refused, Unanswered
from sapwood.route.sizes import estimated

_MARKUP = 4  # tokens around a message, in the templates of today
_MOST = 50_000
_AT_ONCE = 8
_TIMEOUT = 10.0
_REST = 30.0  # seconds for which one that has not counted is asked for nothing


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

    def __init__(self, inner: Inner, clock: Callable[[], float] = monotonic) -> None:
        self._inner, self._clock = inner, clock
        self._rests_until: dict[str, float] = {}  # of models of which nobody counts tokens
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def by(self, model: str) -> _Of:
        """A counter by that model's tokenizer."""
        return _Of(self, model)

    def rests(self, model: str) -> bool:
        """Whether nobody is to be asked for a while."""
        return self._clock() < self._rests_until.get(model, 0.0)

    def failed(self, model: str) -> None:
        """Nobody has counted."""
        self._rests_until[model] = self._clock() + _REST

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
        if self._tokenized.rests(self._model):
            return await Estimate().of(values)
        turn = asyncio.Semaphore(_AT_ONCE)
        texts = [msgspec.json.encode(value) for value in values]
        try:
            async with asyncio.TaskGroup() as tasks:  # which asks for no others once one is not counted
                counting = [tasks.create_task(self._tokenized.count(self._model, text, turn)) for text in texts]
        except* Refused:
            pass  # the messages of others can be counted
        except* Unanswered:
            self._tokenized.failed(self._model)
        if any(one.cancelled() or one.exception() for one in counting):
            return await Estimate().of(values)
        return Counted([one.result() + _MARKUP for one in counting], "tokenize")
