"""Stores of KV as the configuration wants them: put together once the cache is there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from sapwood import __version__
from sapwood.arch.network import Network
from sapwood.base.endpoints import endpoint_of
from sapwood.base.errors import ConfigError
from sapwood.base.handoff import Door
from sapwood.base.stake import Stake
from sapwood.cache import KVCache
from sapwood.config import Config
from sapwood.config.resolve import gib
from sapwood.config.stores import (
    Directory,
    EventsConfig,
    HostMemory,
    LMCache,
    Packed,
    Place,
    Server,
    events,
    hits,
    places,
)
from sapwood.engine.handoff import blocks_of, handing_of
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor, Measured
from sapwood.hub.draft import DraftModel
from sapwood.hub.files import ModelFiles
from sapwood.hub.fingerprint import fingerprint
from sapwood.stores import DiskShelf, HostShelf, Names, PackedShelf, Shelf, StoreStake, ThreadedStore, Tiers
from sapwood.stores.events import Events
from sapwood.stores.handoff import Origin
from sapwood.stores.lmcache import LMCacheShelf
from sapwood.stores.names import digest
from sapwood.stores.remote import RedisShelf

_FORMAT = b"1"  # of pages in stores, whatever else they depend on
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object that is shown by where it lies, which says nothing


class Stores(NamedTuple):
    """What keeps prefixes beyond the device, tells of those there, or hands them over, if anything does."""

    stakes: tuple[Stake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    door: Door | None = None


def stores_of(
    config: Config,
    decoder: Network,
    files: ModelFiles,
    draft: DraftModel | None,
    *,
    measured: Measured,
    kv: KVCache,
    executor: Executor,
) -> Stores:
    """Opens them. Raises ConfigError for a place that cannot be had."""
    wanted, told = places(config.stores), events(config.stores)
    if not wanted and told is None and config.stores.role is None:
        return Stores()
    origin = _origin(config, decoder, files, draft, measured)
    names, handing = Names(origin.digest), handing_of(config, measured, kv, executor, origin)
    telling = () if told is None else (_events(config, told, kv, names),)
    if not wanted:
        return Stores((*telling, *handing.stakes), handing.gauges, handing.door)
    about = f"{Path(files.name).name}, KV in {config.cache.kv_cache_dtype}, {kv.page_size} tokens a page"
    shelves = [_open(place, origin.digest, about) for place in wanted]
    pager = executor.pager(blocks_of(config, measured, kv))
    lasting = any(isinstance(place, Directory | Server | LMCache) for place in wanted)
    stake = StoreStake(kv, ThreadedStore(Tiers(shelves)), pager, names, hits=hits(config.stores), lasting=lasting)
    return Stores((stake, *telling, *handing.stakes), (stake.gauges, *handing.gauges), handing.door)


def _events(config: Config, told: EventsConfig, kv: KVCache, names: Names) -> Events:
    from sapwood.stores.zmq import ZmqPublisher

    models = config.model.served_model_name
    topic = f"kv@{config.server.host}:{config.server.port}@{models[0] if models else config.model.model}"
    replica = config.parallel.replica
    publisher = ZmqPublisher(
        endpoint_of(told.endpoint, replica),
        None if told.replay_endpoint is None else endpoint_of(told.replay_endpoint, replica),
        topic=topic if told.topic is None else told.topic,
        kept=told.buffer_steps,
        most=told.hwm,
    )
    return Events(kv, publisher, names, positional=told.form == "array", replica=replica)


def _open(place: Place, origin: bytes, about: str) -> Shelf:
    match place:
        case HostMemory(size):
            there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size > there:
                raise ConfigError(
                    f"--kv-store host: asks for {gib(size)}, and this machine has {gib(there)}. Lower it."
                )
            return HostShelf(size)
        case Directory(folder, size):
            return DiskShelf(folder, size, origin=origin, about=about)
        case Server(url):
            return RedisShelf(url, str(place))
        case LMCache(host, port):
            return LMCacheShelf(host, port, str(place))
        case Packed(path):
            return PackedShelf(path)


def _origin(
    config: Config, decoder: Network, files: ModelFiles, draft: DraftModel | None, measured: Measured
) -> Origin:
    """What all pages depend on besides their tokens: with another one nothing that was kept is found."""
    made_up = config.model.load_format == "dummy"
    models = [fingerprint(files, weights=not made_up)]
    models += [] if draft is None else [fingerprint(draft.files, weights=not made_up)]
    numbers = (
        config.model.dtype,
        config.model.quantization,
        config.cache.kv_cache_dtype,
        config.device.device.partition(":")[0],
        config.device.cpu_activations,
        config.device.seed if made_up else None,
    )
    parallel = config.parallel
    ranks = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.experts_apart
    facts = repr((__version__, numbers, ranks, measured.groups, measured.backends, decoder))
    words = {
        "version": __version__,
        "model": " with ".join(model.hex() for model in models),
        "dtype": config.model.dtype,
        "quantization": str(config.model.quantization),
        "kv_cache_dtype": config.cache.kv_cache_dtype,
        "page_size": str(measured.groups[0].page_size),
        "device": config.device.device.partition(":")[0],
        "attention": ", ".join(measured.backends),
    }
    return Origin(digest(_FORMAT, *models, _ADDRESS.sub("", facts).encode()), words)
