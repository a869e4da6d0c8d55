"""Handing prompts over as the configuration wants it: who computes for others, and who goes on with what others have computed."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sapwood.base.errors import ConfigError
from sapwood.base.handoff import Door
from sapwood.base.pages import STAGING
from sapwood.base.stake import Stake
from sapwood.cache import KVCache
from sapwood.config import Config
from sapwood.config.devices import rules_of
from sapwood.config.resolve import gib, page_bytes
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor, Measured
from sapwood.stores import Names
from sapwood.stores.handoff import (
    Arena,
    Book,
    FetchStake,
    Listener,
    OfferStake,
    Origin,
    PeerStore,
    SharedTransfer,
    SocketTransfer,
    connected,
    desks,
)

_LEAST_BLOCKS = 8
_EVERYWHERE = ("0.0.0.0", "::")  # addresses to listen at, by which nobody is reached


class Handing(NamedTuple):
    """What hands prompts over or takes them, if anything does, and where."""

    stakes: tuple[Stake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    door: Door | None = None


def handing_of(config: Config, measured: Measured, kv: KVCache, executor: Executor, origin: Origin) -> Handing:
    """Raises ConfigError for a place that cannot be had, and for a model that keeps no prefixes."""
    role = config.stores.role
    if role is None:
        return Handing()
    if not kv.reuse:
        raise ConfigError("--role: prompts are handed over as prefixes, and this model keeps none.")
    engine_id = secrets.token_hex(8)
    door = Door(role, engine_id)
    stakes: list[Stake] = []
    gauges: list[Gauges] = []
    if door.offers:
        offering = _offering(config, measured, kv, executor, origin, engine_id)
        stakes.append(offering.stake)
        gauges.append(offering.gauges)
        host = config.stores.transfer_host
        door = Door(role, engine_id, socket.gethostname() if host in _EVERYWHERE else host, offering.listener.port)
    if door.fetches:
        fetching = _fetching(config, measured, kv, executor, origin)
        stakes.append(fetching)
        gauges.append(fetching.gauges)
    return Handing(tuple(stakes), tuple(gauges), door)


class _Offering(NamedTuple):
    stake: OfferStake
    book: Book
    listener: Listener

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        return self.book.counts | {"offered_blocks": self.book.num_held}, {}


def _offering(
    config: Config, measured: Measured, kv: KVCache, executor: Executor, origin: Origin, engine_id: str
) -> _Offering:
    sizes = [page_bytes(config, group) for group in measured.groups]
    options, apart = config.stores, rules_of(config.device.device).own_memory
    number = options.transfer_memory // sum(sizes)
    if number < _LEAST_BLOCKS:
        raise ConfigError(
            f"--transfer-memory ({gib(options.transfer_memory)}) holds {number} pages; {_LEAST_BLOCKS} are the least: "
            f"{gib(_LEAST_BLOCKS * sum(sizes))}."
        )
    counts = [number] * len(sizes)
    arena = None if apart or not Arena.possible() else Arena()
    pager = executor.pager(counts, None if arena is None else arena.make)
    shared, wired = SharedTransfer(arena), SocketTransfer(lambda host, port: connected(host, port, origin)[0])
    for way in (shared, wired):
        way.register(pager.blocks)
    book = Book(counts, seconds=options.transfer_seconds)
    visit = desks(origin, engine_id, book, (shared, wired))
    listener = Listener(options.transfer_host, options.transfer_port, visit, book.tidy)

    def close() -> None:
        listener.close()
        if arena is not None:
            arena.close()

    at_once = max(1, STAGING // sum(sizes))
    stake = OfferStake(kv, pager, Names(origin.digest), book, at_once=at_once, closing=close)
    return _Offering(stake, book, listener)


def _fetching(config: Config, measured: Measured, kv: KVCache, executor: Executor, origin: Origin) -> FetchStake:
    ways = SharedTransfer(), SocketTransfer(lambda host, port: connected(host, port, origin)[0])
    pager = executor.pager(blocks_of(config, measured, kv))
    names = Names(origin.digest)
    return FetchStake(kv, PeerStore(origin, ways), pager, names, seconds=config.stores.transfer_seconds)


def blocks_of(config: Config, measured: Measured, kv: KVCache) -> Sequence[int]:
    """Blocks of each group that pages pass through on their way: what two steps may leave and as much for the way back, within reason."""
    step = config.scheduler.max_num_batched_tokens
    assert step is not None, "a resolved configuration"
    fit = STAGING // sum(page_bytes(config, group) for group in measured.groups)
    useful = 4 * -(-step // kv.page_size)
    return [max(_LEAST_BLOCKS, min(fit, useful))] * len(measured.groups)
