"""Adapters: the options, and what they mean."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sapwood.base.errors import ConfigError
from sapwood.config.option import option

if TYPE_CHECKING:
    from sapwood.config.facts import DeviceFacts, ModelShape
    from sapwood.config.options import Config

_HEADER = 1 << 26  # bytes of a header that are read at most
SLOTS = 8
LEAST_RANK = 16


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Adapters that requests choose."""

    enable_lora: bool = option(False, "serve LoRA adapters; the options below imply it", "--enable-lora")
    lora_modules: tuple[str, ...] | None = option(
        None,
        'adapters that are there from the start: NAME=PATH, PATH, or {"name": NAME, "path": PATH}; only if one of these '
        "changes the embedding may others do so later",
        "--lora-modules",
        "--lora-paths",
        metavar="NAME=PATH",
        derived=False,
    )
    lora_dir: str | None = option(
        None,
        "a directory of adapters, which come and go while the server runs, each under its folder's name",
        "--lora-dir",
        metavar="DIR",
        derived=False,
    )
    max_loras: int = option(
        SLOTS, "adapters that the device holds at once", "--max-loras", "--max-loras-per-batch", metavar="N"
    )
    max_lora_rank: int | None = option(
        None, "the largest rank that there is room for", "--max-lora-rank", metavar="RANK"
    )
    max_cpu_loras: int | None = option(
        None, "adapters that the host's memory holds", "--max-cpu-loras", "--max-loaded-loras", metavar="N"
    )


class Named(NamedTuple):
    """An adapter by its name and directory."""

    name: str
    path: str


def enabled(config: Config) -> bool:
    """Whether there may be adapters."""
    options = config.adapters
    return bool(options.enable_lora or options.lora_modules or options.lora_dir)


def named(options: AdapterOptions) -> list[Named]:
    """Those that are to be there from the start. Raises ConfigError for what cannot be read, and for a name given twice."""
    found: dict[str, Named] = {}
    for given in options.lora_modules or ():
        for one in _read(given):
            if one.name in found:
                raise ConfigError(f"--lora-modules names {one.name!r} twice: give each adapter a name of its own.")
            found[one.name] = one
    return list(found.values())


def embedded(options: AdapterOptions) -> bool:
    """Whether an adapter that `--lora-modules` names changes the embedding: there is room for that then."""
    return any(".lora_embedding_" in name for one in named(options) for name in _tensors(Path(one.path)))


def _tensors(path: Path) -> list[str]:
    """The names in an adapter's safetensors file, by its header; none where it cannot be read, of which whoever loads it says more."""
    try:
        with (path.expanduser() / "adapter_model.safetensors").open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            return list(json.loads(file.read(min(size, _HEADER))))
    except (OSError, ValueError, TypeError, struct.error):
        return []


def _read(given: str) -> Iterator[Named]:
    if given.lstrip().startswith(("{", "[")):
        try:
            parsed: Any = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"--lora-modules {given}: this is no JSON: {error}.") from error
        for one in parsed if isinstance(parsed, list) else [parsed]:
            yield _object(given, one)
        return
    name, equals, path = given.partition("=")
    path = path if equals else name
    name = name if equals else Path(name).name
    if not name or not path:
        raise ConfigError(f"--lora-modules {given}: expected NAME=PATH.")
    yield Named(name, path)


def _object(given: str, one: Any) -> Named:
    path = one.get("path", one.get("lora_path")) if isinstance(one, dict) else None
    name = one.get("name", one.get("lora_name")) if isinstance(one, dict) else None
    if not isinstance(path, str) or not isinstance(name, str):
        raise ConfigError(f"--lora-modules {given}: expected an object with a name and a path.")
    return Named(name, path)


def _rank(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    if not enabled(config):
        return LEAST_RANK, ""
    ranks = [_rank_of(Path(one.path)) for one in named(config.adapters)]
    folder = Path(config.adapters.lora_dir) if config.adapters.lora_dir else None
    ranks += [_rank_of(one) for one in folder.iterdir()] if folder is not None and folder.is_dir() else []
    aside = "; PyTorch's modules compute the model" if not device.rules.own_memory else ""
    if (most := max(ranks, default=0)) > LEAST_RANK:
        return most, f"the largest of the adapters that are there at the start{aside}"
    return LEAST_RANK, f"most adapters have no more{aside}"


def _rank_of(path: Path) -> int:
    """What its configuration says; 0 where it cannot be read, of which whoever loads it says more."""
    try:
        config = json.loads((path / "adapter_config.json").read_text("utf-8"))
        return max(int(rank) for rank in (config.get("r", 8), *(config.get("rank_pattern") or {}).values()))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def _host(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    return 4 * config.adapters.max_loras, "" if not enabled(config) else "four times as many as the device holds"


RULES = (("adapters", "max_lora_rank", _rank), ("adapters", "max_cpu_loras", _host))
"""Those for what is left open; without a reason where there are no adapters, so that nobody is told."""


def check(config: Config) -> None:
    """Raise ConfigError for options that are at odds."""
    options = config.adapters
    named(options)
    for flag, value in (
        ("--max-loras", options.max_loras),
        ("--max-lora-rank", options.max_lora_rank),
        ("--max-cpu-loras", options.max_cpu_loras),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}.")
    if options.max_cpu_loras is not None and options.max_cpu_loras < options.max_loras:
        raise ConfigError(
            f"--max-cpu-loras ({options.max_cpu_loras}) must not be below --max-loras ({options.max_loras}): an adapter goes to "
            "the device by way of the host's memory. Raise the first or lower the second."
        )
    if enabled(config) and config.parallel.pipeline_parallel_size > 1:
        raise ConfigError("--enable-lora does not go with --pipeline-parallel-size yet: take ranks or engines instead.")
    if enabled(config) and config.model.model_impl == "transformers":
        raise ConfigError("--enable-lora does not go with --model-impl transformers: adapters change our own modules.")
