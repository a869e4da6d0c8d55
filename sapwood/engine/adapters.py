"""Adapters as the configuration wants them: put together once the model is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapwood.adapters import AdapterStake
from sapwood.base.adapter import Adapter
from sapwood.base.adapters import AdapterHost
from sapwood.base.errors import ConfigError, ModelError
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, Refusal
from sapwood.config import Config
from sapwood.config.adapters import Named, enabled, named
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor
from sapwood.hub.adapters import adapter_id

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Lent:
    """Who lends requests the adapters that they ask for, if there may be some."""

    stakes: tuple[AdapterStake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    commands: Mapping[str, Callable[..., dict[str, Any]]] = field(default_factory=dict)


def adapters_of(config: Config, slots: Slots, executor: Executor) -> Lent:
    """The executor has started. Adapters that the configuration names are read, as many of them as the host's memory is to hold.
    Raises ConfigError for one that cannot be used."""
    if not enabled(config):
        return Lent()
    host, most = executor.adapters(), config.adapters.max_cpu_loras
    for one in named(config.adapters)[:most]:
        _read(host, one)
    stake = AdapterStake(host, slots)
    return Lent((stake,), (stake.gauges,), stake.commands)


def _read(host: AdapterHost, one: Named) -> None:
    path = Path(one.path).expanduser().absolute()
    try:
        adapter = Adapter(adapter_id(path), str(path))
    except ModelError as error:
        raise ConfigError(f"--lora-modules {one.name}={one.path}: {error}") from error
    while (found := host.fetched(adapter)) is LATER:
        host.wait(_LOOK_SECONDS)
    if isinstance(found, Refusal):
        raise ConfigError(f"--lora-modules {one.name}={one.path}: {found.why}.")
