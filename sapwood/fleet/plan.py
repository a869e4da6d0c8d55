"""What a fleet is to be: read from a TOML file."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError
from sapwood.config.devices import RULES
from sapwood.route.table import Server, Table
from sapwood.route.table import checked as checked_table

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_FLEET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PARTS = ("router", "register")
_OURS = ("host", "port", "served-model-name", "api-key", "tensor-parallel-size", "lora-modules", "unix-socket")
_WAIT_SECONDS = 300.0  # that requests wait for a server, where nothing is said: one may have to be started first

Count = Annotated[int, Meta(ge=0, le=10_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Engine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers of one model; its name in the table is what clients ask for.

    Attributes:
        model: What `sapwood serve` is given.
        replicas: So many, always; else between `min_replicas` (0: none while nobody asks) and `max_replicas`.
        cpus, gpus: What each takes of a machine. `gpus` is `tensor_parallel` where the file says nothing, and 0 where `device` is "cpu".
        tensor_parallel: Ranks of each, on one machine.
        accelerator: The kind of GPU, as Ray calls it ("H100").
        device: As `--device`; "cpu" takes no GPU.
        options: Other options of `sapwood serve`, without their dashes; true is a flag, a list is one that is given several times.
        adapters: LoRA adapters by their names, which clients ask for as for a model; all servers of the model have them.
        env: Variables of the servers' environment.
        max_running: Requests that the router sends one of them at once.
        target_requests: Requests, running and waiting, that one of them is to have; `target_tokens` the same of tokens that running ones hold.
        up_seconds, down_seconds, zero_seconds: How long more are needed before there are more, fewer before there are fewer, and none
            before there are none.
        start_seconds: That one may take to be ready; `drain_seconds` that its answers may take when it is to end.
    """

    model: str
    replicas: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    min_replicas: Count = 1
    max_replicas: Annotated[int, Meta(ge=1, le=10_000)] = 1
    cpus: Annotated[float, Meta(ge=0, le=4096)] = 1.0
    gpus: Count | None = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=64)] = 1
    accelerator: str | None = None
    device: str | None = None
    options: dict[str, bool | int | float | str | list[str]] = {}
    adapters: dict[str, str] = {}
    env: dict[str, str] = {}
    max_running: Annotated[int, Meta(ge=1)] | None = None
    target_requests: Annotated[float, Meta(gt=0)] = 16.0
    target_tokens: Annotated[float, Meta(gt=0)] | None = None
    up_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 5.0
    down_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    zero_seconds: Annotated[float, Meta(ge=0, le=604_800)] = 900.0
    start_seconds: Seconds = 900.0
    drain_seconds: Seconds = 30.0

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most of them."""
        return (self.replicas, self.replicas) if self.replicas is not None else (self.min_replicas, self.max_replicas)

    @property
    def num_gpus(self) -> int:
        """GPUs of each."""
        if self.gpus is not None:
            return self.gpus
        rules = None if self.device is None else RULES.get(self.device.partition(":")[0])
        return self.tensor_parallel if rules is None or rules.own_memory else 0

    def served(self, name: str) -> tuple[str, ...]:
        """What clients can ask for."""
        return (name, *self.adapters)

    def command(self, name: str, host: str) -> list[str]:
        """The command that serves it at a free port of that address."""
        words = [sys.executable, "-m", "sapwood", "serve", self.model, "--host", host, "--port", "0"]
        words += ["--served-model-name", name, "--drain-timeout", f"{self.drain_seconds:g}"]
        if self.tensor_parallel > 1:
            words += ["--tensor-parallel-size", str(self.tensor_parallel)]
        if self.device is not None:
            words += ["--device", self.device]
        if self.adapters:
            words += ["--lora-modules", *(f"{adapter}={path}" for adapter, path in self.adapters.items())]
        for option, value in self.options.items():
            if value is True:
                words.append(f"--{option}")
            elif value is not False:
                given = value if isinstance(value, list) else [str(value)]
                words += [f"--{option}", *given]
        return words


class Ingress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the router is.

    Attributes:
        host, port: Where it listens, on the machine that it is on; port 0 is a free one.
        replicas: Routers: one is on the head of the cluster, several are on as many machines.
        cpus: What each takes of its machine.
        api_key_file: What clients have to send; `admin_api_key_file` what those send who drain servers.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    cpus: Annotated[float, Meta(ge=0, le=64)] = 0.5
    api_key_file: str | None = None
    admin_api_key_file: str | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        name: What the fleet is called on its cluster, which may have several.
        address: The cluster: "auto" is the one that runs here, `ray://HOST:10001` another.
        runtime_env: What Ray brings to the machines, as it takes it: {"working_dir": ...}, say.
        route: The router's table (docs/routing.md) but for its servers.
    """

    engine: Annotated[dict[str, Engine], Meta(min_length=1)]
    name: str = "sapwood"
    address: str | None = None
    ingress: Ingress = Ingress()
    route: dict[str, Any] = {}
    runtime_env: dict[str, Any] = {}

    def table(self, key: str) -> Table:
        """The router's: for each model the servers that the register tells of, which are asked with that key."""
        raw = {"queue_seconds": _WAIT_SECONDS} | self.route | {"server": [{"url": "http://fleet"}]}
        servers = tuple(
            Server(
                url=f"fleet+http://{name}",
                name=name,
                key=key,
                models=engine.served(name),
                max_running=engine.max_running,
            )
            for name, engine in self.engine.items()
        )
        return msgspec.structs.replace(checked_table(raw, "[route]"), server=servers)


def read(path: Path) -> Plan:
    """Raises ConfigError for a file that cannot be used, saying where."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The fleet {path} cannot be read: {error}.") from error
    return checked(raw, str(path))


def checked(raw: Mapping[str, object], where: str) -> Plan:
    """Raises ConfigError for what is no fleet, naming the field."""
    try:
        plan = msgspec.convert(raw, Plan)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.") from error
    if "server" in plan.route:
        raise ConfigError(f"{where}: [route] has no server: those of [engine.*] are its servers.")
    if "api_keys_file" in plan.route and plan.ingress.api_key_file is not None:
        raise ConfigError(f"{where}: give either api_keys_file of [route] or api_key_file of [ingress].")
    names: list[str] = []
    for name, engine in plan.engine.items():
        _check(name, engine, f"{where}: [engine.{name}]")
        names += engine.served(name)
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{where}: two models or adapters are called {doubled.pop()!r}.")
    if not _FLEET.fullmatch(plan.name):
        raise ConfigError(f"{where}: name is letters, digits and _ -, not {plan.name!r}.")
    try:
        plan.table("")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return plan


def _check(name: str, engine: Engine, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a model's name is letters, digits and . _ -, 63 at most.")
    if name in _PARTS:
        raise ConfigError(f"{where}: {name} is what a part of every fleet is called; take another name.")
    if engine.replicas is not None and (engine.min_replicas, engine.max_replicas) != (1, 1):
        raise ConfigError(f"{where}: give either replicas or min_replicas and max_replicas.")
    least, most = engine.bounds
    if least > most:
        raise ConfigError(f"{where}: min_replicas ({least}) is more than max_replicas ({most}).")
    if engine.num_gpus and engine.num_gpus < engine.tensor_parallel:
        raise ConfigError(f"{where}: {engine.tensor_parallel} ranks need as many GPUs, not {engine.num_gpus}.")
    if engine.accelerator is not None and not engine.num_gpus:
        raise ConfigError(f"{where}: accelerator is nothing without GPUs.")
    for option in engine.options:
        if option.startswith("-"):
            raise ConfigError(f"{where}: options have no dashes: {option.lstrip('-')} = ...")
        if option.replace("_", "-") in _OURS:
            raise ConfigError(f"{where}: {option} is set by the fleet itself; leave it out of options.")
