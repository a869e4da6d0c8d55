"""The token ids of a prompt, which say exactly what caches may have of it: a server makes them, which has the tokenizer and the template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import msgspec

from sapwood.route.ask import Ask
from sapwood.route.fleet import Replica
from sapwood.route.kv import packed
from sapwood.route.metrics import Metrics
from sapwood.route.upstream import Silent, Upstream, whole

_PATH = "/tokenize"
_PATIENCE = 0.5  # seconds for an answer; after that a guess is better
_PAUSE = 30.0  # seconds until one that gave none is asked again
_UNKNOWN = (404, 405)  # how a server says that it has no such path
_TALK = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_FIELDS: Mapping[str, Sequence[str]] = {"/v1/chat/completions": _TALK, "/v1/completions": ("prompt",)}


class _Told(msgspec.Struct):
    tokens: list[int]


class Tokens:
    """Asks servers for tokens at /tokenize, as vLLM and Sapwood have it."""

    def __init__(self, upstream: Upstream, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._upstream, self._metrics, self._clock = upstream, metrics, clock
        self._paused: dict[str, float] = {}

    async def of(self, ask: Ask, replicas: Sequence[Replica]) -> bytes | None:
        """`packed`; None for a dialect of which no server makes tokens, or where none does now."""
        if (given := _given(ask)) is not None:
            return given
        fields = {name: raw for name in _FIELDS.get(ask.path, ()) if (raw := ask.raw(name)) is not None}
        now = self._clock()
        there = [one for one in replicas if self._paused.get(one.name, 0.0) <= now]
        if not fields or not there:
            return None
        one = min(there, key=lambda one: one.load)
        if (model := ask.raw("model")) is not None and ask.model is not None and one.serves(ask.model):
            fields["model"] = model
        told, able = await self._ask(one, ask, msgspec.json.encode(fields))
        self._metrics.tokenized("failed" if told is None else "told")
        if not able:
            self._paused[one.name] = now + _PAUSE
        return told

    async def _ask(self, one: Replica, ask: Ask, body: bytes) -> tuple[bytes | None, bool]:
        """Tokens, and whether the server may be asked for others: what is wrong with one request is not the server's fault."""
        try:
            async with asyncio.timeout(_PATIENCE):
                response = await self._upstream.send(one, "POST", _PATH, ask.headers, body)
                with response:
                    said = await whole(response)
            if said.status != 200:
                return None, 400 <= said.status < 500 and said.status not in _UNKNOWN
            return packed(msgspec.json.decode(said.body, type=_Told).tokens), True
        except (Silent, TimeoutError, msgspec.DecodeError, OverflowError):
            return None, False


def _given(ask: Ask) -> bytes | None:
    """Of a prompt that is token ids already."""
    if ask.path == "/v1/completions" and (raw := ask.raw("prompt")) is not None:
        try:
            return packed(msgspec.json.decode(raw, type=list[int]))
        except (msgspec.DecodeError, OverflowError):
            pass
    return None
