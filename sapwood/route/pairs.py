"""Prefill and decode apart: one server reads a prompt, another answers it with what the first has read.

    request ── first token, for somebody else ──► a server with role = "prefill"
       │  ◄── where what it has read can be had
       └── with that ──► another server ──► the answer

What the first one says is passed on as it is: `kv_transfer_params` of its answer, as vLLM's proxies have it, or the header in which Sapwood's servers
say the same in every dialect. Where it says nothing, for whatever reason, the other one reads the prompt itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sapwood.route.ask import Ask
from sapwood.route.fleet import Replica
from sapwood.route.metrics import Metrics
from sapwood.route.policies import Chosen, Policy
from sapwood.route.upstream import Silent, Upstream, whole

HEADER = "x-sapwood-kv-transfer"
FIELD = "kv_transfer_params"

_NAMED = ("/v1/chat/completions", "/v1/completions")  # where the answer's body has a place for it
_PATHS = (*_NAMED, "/v1/messages", "/generate", "/api/chat", "/api/generate")
_READ = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_FIRST_TOKEN = {"max_tokens": 1, "min_tokens": 0, "n": 1}
_LEFT_OUT = ("stream_options", "store", "max_completion_tokens", "best_of")


class _Answer(msgspec.Struct):
    kv_transfer_params: dict[str, Any] | None = None


class Pairs:
    """Has prompts read by servers with the role. `least` tells from how many tokens on, about, that is worth it; `left` is told when one
    has room again."""

    def __init__(
        self, upstream: Upstream, metrics: Metrics, least: Callable[[], int], left: Callable[[], None] = lambda: None
    ) -> None:
        self._upstream, self._metrics, self._least, self._left = upstream, metrics, least, left

    def worth(self, ask: Ask) -> bool:
        """Whether a request's prompt is to be read by another server than the one that answers it."""
        return ask.path in _PATHS and not ask.is_form and ask.prompt_tokens >= self._least()

    async def read(self, ask: Ask, replica: Replica, model: str | None) -> dict[str, Any] | None:
        """Where to find what the server has read; None if it does not say."""
        replica.enters()
        try:
            told = await self._read(ask, replica, model)
        finally:
            replica.leaves()
            self._left()
        self._metrics.prefilled(replica.name, "failed" if told is None else "read")
        return told

    async def _read(self, ask: Ask, replica: Replica, model: str | None) -> dict[str, Any] | None:
        more: dict[str, Any] = {"stream": False, FIELD: _READ}
        if ask.path in _NAMED:
            more |= _FIRST_TOKEN
        try:
            body = ask.named(model, more=more, without=_LEFT_OUT)
            with await self._upstream.send(replica, "POST", ask.path, ask.headers, body) as response:
                said = await whole(response)
        except Silent:
            replica.failed()
            return None
        if said.status != 200:
            return None
        replica.succeeded()
        try:
            if (given := said.headers.get(HEADER)) is not None:
                return msgspec.json.decode(given, type=dict[str, Any])
            return msgspec.json.decode(said.body, type=_Answer).kv_transfer_params
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


class PrefillDecode(Policy):
    """The server that reads is chosen by `ahead`, and the one that answers by `behind`, of those that have no other role."""

    def __init__(self, pairs: Pairs, ahead: Policy, behind: Policy) -> None:
        self._pairs, self._ahead, self._behind = pairs, ahead, behind

    def answering(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        return [one for one in replicas if one.server.role != "prefill"] or replicas

    async def prepare(self, ask: Ask, replicas: Sequence[Replica], model: str | None) -> None:
        readers = [one for one in replicas if one.server.role == "prefill" and one.has_room and not one.busy()]
        if not readers or len(readers) == len(replicas) or not self._pairs.worth(ask):
            return
        await self._ahead.prepare(ask, readers, model)
        reader = self._ahead.choose(ask, readers).replica
        told = await self._pairs.read(ask, reader, model)
        if told is not None:
            self._ahead.sent(ask, reader)
            ask.more, ask.more_of = {FIELD: told}, model

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        return Chosen(self._behind.choose(ask, replicas).replica, "handed" if ask.more else "alone")

    def sent(self, ask: Ask, replica: Replica) -> None:
        if replica.server.role == "prefill":  # nobody else is left: it answers what it has read itself
            ask.more = {}
        self._behind.sent(ask, replica)
