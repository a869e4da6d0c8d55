"""Several models behind one front: which, what each is asked for by, and what becomes of those that nobody asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapwood.base.errors import ConfigError
from sapwood.config.option import option

if TYPE_CHECKING:
    from sapwood.config.facts import DeviceFacts, ModelShape
    from sapwood.config.options import Config


@dataclass(frozen=True, kw_only=True)
class HouseConfig:
    """Several models behind one front."""

    models: str | None = option(
        None, "a TOML file of models, each with options of its own", "--models", metavar="FILE", derived=False
    )
    max_loaded: int | None = option(
        None,
        "how many of them have the device's memory at once, each an equal share of it; all without it",
        "--max-loaded-models",
        metavar="N",
        derived=False,
    )
    idle: str = option(
        "sleep",
        "what makes room: models that were not asked for lately sleep, or their processes end",
        "--idle-models",
        choices=("sleep", "unload"),
    )
    keep_alive: str | None = option(
        None,
        "how long a model that nobody asks for stays, such as 10m; for ever without it, or until room is needed",
        "--keep-alive",
        metavar="TIME",
        derived=False,
    )
    wait_seconds: float = option(
        300.0,
        "how long requests wait for their model to be there before they get 503",
        "--model-wait",
        metavar="SECONDS",
    )


@dataclass(frozen=True, kw_only=True)
class Resident:
    """A model that may be asked for.

    Attributes:
        names: Of it, the one first that answers have.
        keep_alive: Seconds that it stays while nobody asks for it; None is for ever.
        pinned: It is loaded at the start and never makes room.
        fallback: The name of another that answers in its place where it cannot be loaded.
    """

    names: tuple[str, ...]
    config: Config
    keep_alive: float | None = None
    pinned: bool = False
    fallback: str | None = None

    @property
    def name(self) -> str:
        return self.names[0]


_FRACTION = 0.9
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FOREVER = 100 * 365 * _UNITS["d"]
_OWN = ("model", "aliases", "pinned", "keep_alive", "fallback")


def memory_fraction(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[float, str]:
    """Of the device's memory, and why: models that are there at once have an equal share."""
    from sapwood.config.flags import flag_of

    share = device.rules.share.format(flag=flag_of("kv_cache_memory"))
    if (models := config.house.max_loaded) is not None and models > 1:
        return round(_FRACTION / models, 4), f"one of {models} models at once; {share}"
    return _FRACTION, share


def seconds_of(value: str | float | None, what: str) -> float | None:
    """A time as Ollama has it: seconds, or a number with a unit (10m, 1h30m); None is for ever, as what is below zero."""
    if value is None:
        return None
    text = str(value).strip()
    if text.startswith("-"):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ConfigError(f"{what} takes a time, such as 300, 10m or 1h30m, or -1 for ever, got {value!r}.")
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return None if total > _FOREVER else total


def residents(models: Sequence[str], given: Mapping[str, Any]) -> list[Resident]:
    """The models of a command line, or of the file that it names; `given` are the options of all of them. Raises ConfigError."""
    from sapwood.config.flags import from_options

    base = from_options({name: value for name, value in given.items() if name != "model"})
    if base.house.models is None:
        found = [_resident(_short(model), {"model": model}, given) for model in models]
    else:
        if models:
            raise ConfigError("models are named on the command line and by --models: leave out one of the two.")
        path, tables = Path(base.house.models), _tables(Path(base.house.models))
        try:
            found = [_resident(name, table, given) for name, table in tables.items()]
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    _check(found)
    most = base.house.max_loaded
    if most is not None and most < max(1, sum(one.pinned for one in found)):
        raise ConfigError(f"--max-loaded-models ({most}) must be at least 1, and as many as are pinned.")
    return found


def _tables(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--models {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"--models {path} cannot be read: {error}.") from error
    tables = content.get("models")
    if content.keys() != {"models"} or not isinstance(tables, dict) or not tables:
        raise ConfigError(f"--models {path}: it has a table [models.NAME] for each model, and nothing else.")
    return tables


def _resident(name: str, table: Any, given: Mapping[str, Any]) -> Resident:
    from sapwood.config.flags import from_options, section_of

    if not isinstance(table, dict) or not isinstance(table.get("model"), str):
        raise ConfigError(f"models.{name} has no model.")
    own = {key: value for key, value in table.items() if key not in _OWN}
    for key in own:
        if section_of(key) in ("server", "house"):
            raise ConfigError(f"models.{name}.{key} is an option of the server, not of one model: give it as a flag.")
    aliases, fallback = table.get("aliases", []), table.get("fallback")
    if not isinstance(aliases, list) or not all(isinstance(one, str) and one for one in aliases):
        raise ConfigError(f"models.{name}.aliases takes a list of names.")
    shared = {key: value for key, value in given.items() if key not in ("model", "served_model_name")}
    config = from_options(shared | own | {"model": table["model"], "served_model_name": [name, *aliases]})
    stays = table.get("keep_alive", config.house.keep_alive)
    return Resident(
        names=(name, *aliases),
        config=config,
        keep_alive=seconds_of(stays, f"models.{name}.keep_alive"),
        pinned=bool(table.get("pinned", False)),
        fallback=fallback,
    )


def _check(found: Sequence[Resident]) -> None:
    names = [name for one in found for name in one.names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice!r} is the name of two models: give one of them another.")
    for one in found:
        if one.fallback is not None and (one.fallback not in names or one.fallback in one.names):
            raise ConfigError(f"the fallback of {one.name!r}, {one.fallback!r}, is no other of the models.")


def _short(model: str) -> str:
    """What a model of a command line is called: as it is there, or as its directory or file is."""
    path = Path(model)
    return path.name if path.exists() else model
