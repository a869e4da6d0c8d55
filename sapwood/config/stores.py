"""Where keys and values go beyond the device: the options, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from sapwood.base.errors import ConfigError
from sapwood.config import handoff
from sapwood.config.numbers import parse_bytes
from sapwood.config.option import names_in, option

FORMULA = "loaded where bytes / bandwidth < tokens / prefill rate, both as measured"
_WRITES: Mapping[str, int | None] = MappingProxyType(
    {"through": 0, "selective": 1, "back": None, "write_through": 0, "write_through_selective": 1, "write_back": None}
)
_DISK = 10 << 30  # bytes, where nothing is said


@dataclass(frozen=True, kw_only=True)
class StoreConfig(handoff.HandoffConfig):
    """Where KV goes beyond the device, and comes from."""

    kv_store: str | None = option(
        None,
        "where computed prefixes are kept too, the fastest first: host:8G, file:DIR?size=50G, redis://HOST, lm://HOST:PORT; may be given several times",
        "--kv-store",
        metavar="KIND:WHERE",
        derived=False,
        several=True,
    )
    kv_store_write: str = option(
        "through",
        "what is kept there: all that is computed, what a second request has found, or what the device evicts (back)",
        "--kv-store-write",
        "--hicache-write-policy",
        choices=tuple(_WRITES),
    )
    kv_offloading_size: float | None = option(
        None,
        "GiB of host memory: the same as --kv-store host:SIZE before all others",
        "--kv-offloading-size",
        "--hicache-size",
        metavar="GIB",
        derived=False,
    )
    hierarchical_cache: bool = option(
        False, "taken along with --hicache-size, which says how much", "--enable-hierarchical-cache"
    )
    kv_transfer_config: str | None = option(
        None, "not taken; its error says what is", "--kv-transfer-config", metavar="JSON", derived=False
    )
    preload_cache: str | None = option(
        None,
        "a file of prefixes that `sapwood cache export` wrote",
        "--preload-cache",
        metavar="FILE",
        derived=False,
    )
    kv_events_config: str | None = option(
        None,
        'tell routers what is cached, by ZeroMQ: \'{"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}\'',
        "--kv-events-config",
        metavar="JSON",
        derived=False,
    )


class EventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What --kv-events-config may hold, as vLLM and SGLang have it. `topic` is made of the server's address and its model where it
    is not given, and `form` is that of events: maps, or arrays as older consumers read them."""

    enable_kv_cache_events: bool = True
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    hwm: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    max_queue_size: int = 100_000
    topic: str | None = None
    form: Literal["map", "array"] = "map"


def events(options: StoreConfig) -> EventsConfig | None:
    """What is told to whom, None where nothing is. Raises ConfigError."""
    if options.kv_events_config is None:
        return None
    try:
        given = msgspec.json.decode(options.kv_events_config, type=EventsConfig)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--kv-events-config takes a JSON object: {error}.") from None
    return given if given.enable_kv_cache_events and given.publisher == "zmq" else None


class HostMemory(NamedTuple):
    size: int

    def __str__(self) -> str:
        return f"{self.size / (1 << 30):.4g} GiB of host memory"


class Directory(NamedTuple):
    folder: Path
    size: int

    def __str__(self) -> str:
        return f"{self.size / (1 << 30):.4g} GiB in {self.folder}"


class Packed(NamedTuple):
    path: Path

    def __str__(self) -> str:
        return str(self.path)


class Server(NamedTuple):
    """A Redis or Valkey. `url` as its client takes it, with what is secret in it."""

    url: str

    def __str__(self) -> str:
        told = urlsplit(self.url)
        return f"{told.scheme}://{told.hostname or told.path}" + (f":{told.port}" if told.port else "")


class LMCache(NamedTuple):
    """An LMCache server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"lm://{self.host}:{self.port}"


Place = HostMemory | Directory | Server | LMCache | Packed


def places(options: StoreConfig) -> tuple[Place, ...]:
    """Where prefixes are kept, the fastest first. Raises ConfigError."""
    if options.kv_transfer_config is not None:
        raise ConfigError(
            "--kv-transfer-config names connectors of another engine. Take --kv-store host:8G for host memory, or "
            "--kv-store file:DIR?size=50G for a disk, and --role for prefill and decode apart."
        )
    if options.hierarchical_cache and options.kv_offloading_size is None:
        raise ConfigError(
            "--enable-hierarchical-cache needs a size: give --hicache-size GIB, or take --kv-store host:8G."
        )
    given = names_in(options.kv_store)
    if (size := options.kv_offloading_size) is not None:
        if size <= 0:
            raise ConfigError(f"--kv-offloading-size must be more than 0, got {size}.")
        given.insert(0, f"host:{int(size * (1 << 30))}")
    found: list[Place] = [_read(one) for one in given]
    if options.preload_cache is not None:
        found.append(Packed(Path(options.preload_cache).expanduser()))
    if len({type(place) for place in found}) < len(found):
        raise ConfigError("--kv-store: host memory, a directory and a server are given once each.")
    return tuple(found)


def wanted(options: StoreConfig) -> str | None:
    """A flag by which something is kept or told, None without any. Raises ConfigError for what is wrong."""
    if places(options):
        return "--kv-store"
    return None if events(options) is None else "--kv-events-config"


def hits(options: StoreConfig) -> int | None:
    """How many requests must have found a page before it is kept; None if it is kept when it leaves the device."""
    return _WRITES[options.kv_store_write]


def _read(text: str) -> Place:
    kind, _, rest = text.partition(":")
    read = _KINDS.get(kind)
    if read is None or not rest:
        raise ConfigError(
            f"--kv-store takes host:SIZE, file:DIR?size=SIZE, redis://HOST or lm://HOST:PORT, such as host:8G, got {kind!r}."
        )
    return read(rest)


def _host(text: str) -> Place:
    return HostMemory(_size(text))


def _file(text: str) -> Place:
    folder, _, query = text.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True))
    size = values.pop("size", None)
    if values or not folder:
        raise ConfigError(f"--kv-store file: takes a directory and ?size=, got {text!r}.")
    return Directory(Path(folder).expanduser(), _DISK if size is None else _size(size))


def _redis(scheme: str) -> Callable[[str], Place]:
    def read(rest: str) -> Place:
        url = f"{scheme}:{rest}"
        try:
            told = urlsplit(url)
            good = rest.startswith("//") and bool(told.hostname or told.path) and told.port != 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"--kv-store {scheme}: takes a server, such as {scheme}://localhost:6379/0.")
        return Server(url)

    return read


def _lmcache(rest: str) -> Place:
    try:
        told = urlsplit(f"lm:{rest}")
        host, port = told.hostname, told.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError("--kv-store lm: takes an LMCache server, such as lm://localhost:65432.")
    return LMCache(host, port)


def _size(text: str) -> int:
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"--kv-store: a size is bytes, such as 512M or 8G, got {text!r}.")
    return size


_KINDS: Mapping[str, Callable[[str], Place]] = MappingProxyType(
    {
        "host": _host,
        "file": _file,
        "redis": _redis("redis"),
        "rediss": _redis("rediss"),
        "unix": _redis("unix"),
        "valkey": _redis("redis"),
        "valkeys": _redis("rediss"),
        "lm": _lmcache,
    }
)


def check(options: StoreConfig, *, prefix_caching: bool) -> None:
    """Raise ConfigError for a store where prefixes are not kept."""
    name = "--role" if options.role else wanted(options)
    if name is not None and not prefix_caching:
        raise ConfigError(f"{name} is of prefixes, so it wants --enable-prefix-caching.")
