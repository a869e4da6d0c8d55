"""GET /live: requests as lanes, the KV cache and its tree, latencies. What pages and terminals draw a running server from."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic, time
from typing import Any, Generic, Literal, TypeVar

import msgspec
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from sapwood import __version__
from sapwood.server.front import Front
from sapwood.server.keys import OPERATOR
from sapwood.server.passage import passage
from sapwood.server.routes import Described, plain, query_of

T = TypeVar("T")

_FRESH = 0.4  # seconds for which all who look see the same
_SLICE = 0.02  # seconds of rest for each slice of a tree, which takes the engine a millisecond or so
_LATENCIES = {
    "sapwood_time_to_first_token_seconds": "first_token",
    "sapwood_inter_token_seconds": "inter_token",
}
_RECENT = 10.0  # seconds that rates are about
_RATED = ("steps", "prompt_tokens", "cached_tokens", "output_tokens", "finished")
_MOST_LABELS = 20_000  # texts that are remembered from one look to the next


class Wanted(msgspec.Struct):
    """With `tree` 0 the tree is left out; with `begins` 1 the token ids that twigs begin with are told beside their text."""

    tree: Literal[0, 1] = 1
    begins: Literal[0, 1] = 0


class Look(Generic[T]):
    """What `ask` says, asked once for all who look within a while: many who look cost the engine no more than one. It says too
    for how many seconds that is to do."""

    def __init__(self, ask: Callable[[], Awaitable[tuple[T, float]]]) -> None:
        self._ask = ask
        self._lock = asyncio.Lock()
        self._seen: T | None = None
        self._until = 0.0

    async def __call__(self) -> T:
        async with self._lock:
            if self._seen is None or monotonic() > self._until:
                self._seen, rest = await self._ask()
                self._until = monotonic() + rest
            return self._seen


class Rates:
    """How often something has happened per second lately: between the looks of a while."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def __call__(self, counters: dict[str, int], now: float) -> dict[str, float]:
        """Empty where nobody has looked lately, or the engine is another one."""
        counts = {name: counters.get(name, 0) for name in _RATED}
        seen = self._seen
        while seen and (seen[0][0] < now - _RECENT or any(seen[0][1][name] > count for name, count in counts.items())):
            seen.popleft()
        since, before = seen[0] if seen else (now, counts)
        seen.append((now, counts))
        passed = now - since
        return {name: round((count - before[name]) / passed, 3) for name, count in counts.items()} if passed else {}


class Labels:
    """Texts of the tokens that twigs begin with."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._known: dict[tuple[int, ...], str] = {}

    async def __call__(self, several: list[list[int]]) -> list[str]:
        known = self._known
        keys = [tuple(tokens) for tokens in several]
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        texts = await self._front.decode_all([list(key) for key in missing], skip_special=False)
        if len(known) > _MOST_LABELS:
            known = self._known = {key: known[key] for key in keys if key in known}
        known.update(zip(missing, texts, strict=True))
        return [known[key] for key in keys]


def routes(front: Front) -> list[Described]:
    labels, rates = Labels(front), Rates()

    async def drawn() -> tuple[dict[str, Any], float]:
        reply, slices = await front.engine.control("tree"), 1
        while not reply["done"]:
            reply, slices = await front.engine.control("tree"), slices + 1
        tree: dict[str, Any] = reply["tree"]
        twigs = tree["twigs"]
        twigs["begin"] = twigs["label"]
        twigs["label"] = await labels(twigs["begin"])
        return tree, max(_FRESH, _SLICE * slices)

    async def asked() -> tuple[dict[str, Any], float]:
        told: dict[str, Any] = await front.engine.control("live")
        measured = {"rates": rates(told["counters"], monotonic()), "latency": _latencies(front.metrics.registry)}
        return _now(front) | told | measured, _FRESH

    state, tree = Look(asked), Look(drawn)

    async def live(request: Request) -> Response:
        """What the server does at this moment: requests, pages, the tree of prefixes, latencies."""
        wanted = query_of(request, Wanted)
        told = await state()
        if wanted.tree:
            # Prompts are their senders' business: where there are keys, only the operator sees those of others.
            texts = not front.guard.keyed or passage(request.scope, request._send).account.tenant is OPERATOR
            told = told | {"tree": _shown(await tree(), texts=texts, begins=bool(wanted.begins))}
        return Response(
            msgspec.json.encode(told), headers={"content-type": "application/json", "cache-control": "no-store"}
        )

    return [plain("/live", live, query=Wanted, gives=dict[str, Any])]


def _shown(tree: dict[str, Any], *, texts: bool, begins: bool) -> dict[str, Any]:
    twigs = tree["twigs"] if texts else tree["twigs"] | {"label": None, "begin": None}
    return tree | {"twigs": {name: column for name, column in twigs.items() if begins or name != "begin"}}


def _now(front: Front) -> dict[str, Any]:
    facts = front.facts
    return {
        "time": time(),
        "uptime": round(time() - front.started, 1),
        "version": __version__,
        "model": front.model_name,
        "device": facts.device,
        "dtype": facts.dtype,
        "page_size": facts.page_size,
        "max_model_len": facts.max_model_len,
        "max_num_seqs": facts.max_num_seqs,
    }


def _latencies(registry: CollectorRegistry) -> dict[str, dict[str, Any]]:
    """Since the start, by what is measured: upper bounds of buckets in seconds (None for the last), how many were within."""
    told: dict[str, dict[float, float]] = {name: {} for name in _LATENCIES.values()}
    for family in registry.collect():
        if (name := _LATENCIES.get(family.name)) is None:
            continue
        counts = told[name]
        for sample in family.samples:
            if "le" in sample.labels:
                bound = float(sample.labels["le"])
                counts[bound] = counts.get(bound, 0.0) + sample.value
    return {
        name: {"bounds": [bound if bound != inf else None for bound in counts], "counts": list(counts.values())}
        for name, counts in told.items()
    }
