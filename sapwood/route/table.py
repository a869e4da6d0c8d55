"""What the router is told: servers, names of models, policies. Read from a TOML file, and again whenever that changes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError
from sapwood.route.context.table import Context
from sapwood.route.context.table import check as check_context
from sapwood.route.semantic.table import (
    About,
    Answers,
    ApplyBy,
    Auto,
    Meaning,
    Signal,
    check_rules,
    check_standing,
)

POLICIES = ("cache_aware", "least_load", "power_of_two", "session", "round_robin", "prefill_decode")

_SCHEMES = ("http", "https", "dns+http", "dns+https", "k8s+http", "k8s+https")
_API = "/v1"  # many give it as a part of the address


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server, or with `dns+http://` all that the name stands for, with `k8s+http://SERVICE.NAMESPACE` all of a service of Kubernetes.

    Attributes:
        url: Its address, without /v1.
        name: What metrics and headers call it; its host and port by default.
        key: What it is asked with, in place of the client's own key; `key_file` has it, where it is to stand in no table.
        models: What it serves; by default what it says at /v1/models.
        weight: Its share beside others.
        max_running: Requests that are sent to it at once; others wait.
        role: "prefill" reads prompts for others under `prefill_decode`; "decode" goes on with them, as all do that say nothing.
        events: Where it tells what is in its cache (ZeroMQ); a * is its own host. `events_replay` tells again what was missed.
        engines: How many engines it has (`--data-parallel-size`); each tells of its own cache, at the port behind that of the one before.
    """

    url: str
    name: str = ""
    key: str | None = None
    key_file: str | None = None
    models: tuple[str, ...] | None = None
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    max_running: Annotated[int, Meta(ge=1)] | None = None
    role: Literal["prefill", "decode"] | None = None
    events: str | None = None
    events_replay: str | None = None
    engines: Annotated[int, Meta(ge=1, le=1024)] = 1

    @property
    def shown(self) -> str:
        return self.name or urlsplit(self.url).netloc.rpartition("@")[2]  # what is before it is nobody's business

    @property
    def looked_up(self) -> bool:
        """Whether `url` says where its addresses are found, and not the address itself."""
        return "+" in self.url.partition("://")[0]


class Alias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name that clients may ask for: it stands for the first of some models that a server is at hand for."""

    to: Annotated[tuple[str, ...], Meta(min_length=1)]
    policy: str | None = None


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        server: Who may be asked.
        model: Names beside those that servers have.
        policy: How a server is chosen, where a model says nothing else.
        prefill_from: Tokens of a prompt, about, from which on `prefill_decode` has it read by another server.
        retries: Other servers that are tried before anything was answered.
        queue: Requests that may wait for a server with room, with bodies of `queue_bytes` together; each as long as `queue_seconds`.
        session_header: A header that tells which requests belong together; `session_cookie` a cookie.
        api_keys_file: Who may ask, and how much, as `sapwood serve --api-keys-file` has it.
        paths: Which model answers a path where the request names none.
        apply: Which model applies edits, by the size of the file.
        auto: Names that rules resolve, `signal` what rules look for, `about` what models cost, `meaning` who makes vectors.
        answers: The cache of answers by meaning; none by default.
        context: How long histories may be, by model.
    """

    server: Annotated[tuple[Server, ...], Meta(min_length=1)]
    model: dict[str, Alias] = {}
    policy: str = "cache_aware"
    prefill_from: Annotated[int, Meta(ge=0)] = 256
    retries: Annotated[int, Meta(ge=0, le=16)] = 2
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 1024
    queue_bytes: Annotated[int, Meta(ge=0)] = 256 << 20
    queue_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    session_header: str = "x-session-id"
    session_cookie: str = ""
    api_keys_file: str | None = None
    paths: dict[str, str] = {}
    apply: tuple[ApplyBy, ...] = ()
    auto: dict[str, Auto] = {}
    signal: dict[str, Signal] = {}
    about: dict[str, About] = {}
    meaning: Meaning | None = None
    answers: Answers | None = None
    context: dict[str, Context] = {}


def read(path: Path) -> Table:
    """Raises ConfigError for a file that cannot be used, saying where."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The table of servers {path} cannot be read: {error}.") from error
    return checked(raw, str(path))


def of_urls(urls: Sequence[str], policy: str) -> Table:
    """A table of nothing but servers. Raises ConfigError."""
    return checked({"server": [{"url": url} for url in urls], "policy": policy}, "the command line")


def checked(raw: Mapping[str, object], where: str) -> Table:
    """Raises ConfigError for what is no table, naming the field."""
    try:
        table = msgspec.convert(raw, Table)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.") from error
    for policy in (table.policy, *(alias.policy for alias in table.model.values() if alias.policy is not None)):
        if policy not in POLICIES:
            raise ConfigError(f"{where}: there is no policy {policy!r}; take one of {', '.join(POLICIES)}.")
    _check_roles(table, where)
    check_standing(table.paths, table.apply, where)
    check_context(table.context, where)
    check_rules(table.auto, table.signal, table.meaning, table.answers, table.model, where)
    servers = tuple(_checked(server, where) for server in table.server)
    names = [server.shown for server in servers]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{where}: two servers are called {doubled.pop()}; give them names of their own.")
    return msgspec.structs.replace(table, server=servers)


def _check_roles(table: Table, where: str) -> None:
    roles = [server.role for server in table.server]
    policies = [table.policy, *(alias.policy for alias in table.model.values())]
    if "prefill_decode" in policies and ("prefill" not in roles or all(role == "prefill" for role in roles)):
        raise ConfigError(
            f'{where}: the policy prefill_decode needs a server with role = "prefill", and one without to go on with what that has read.'
        )


def _check_events(server: Server, where: str) -> None:
    for name in ("events", "events_replay"):
        address = getattr(server, name)
        if address is not None and not address.startswith(("tcp://", "ipc://")):
            raise ConfigError(f"{where}: {name} of {server.shown} is an address like tcp://HOST:5557, not {address!r}.")
        if address is not None and server.looked_up and "*" not in address:
            raise ConfigError(
                f"{where}: {server.shown} stands for several addresses, so {name} needs * for the host: tcp://*:5557."
            )
    if server.events_replay is not None and server.events is None:
        raise ConfigError(f"{where}: events_replay of {server.shown} is nothing without events.")
    _check_engines(server, where)


def _check_engines(server: Server, where: str) -> None:
    if server.engines > 1 and server.events is None:
        raise ConfigError(
            f"{where}: engines of {server.shown} is about where they tell of their caches: give events too."
        )
    ports = [address.rpartition(":")[2] for address in (server.events, server.events_replay) if address is not None]
    if len(ports) == 2 and all(map(str.isdecimal, ports)) and abs(int(ports[0]) - int(ports[1])) < server.engines:
        raise ConfigError(
            f"{where}: the engines of {server.shown} tell at {server.engines} ports in a row, so those of events and events_replay have to "
            f"be {server.engines} apart or more."
        )


def _checked(server: Server, where: str) -> Server:
    url = server.url if "://" in server.url else f"http://{server.url}"
    parts = urlsplit(url)
    try:
        good = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise ConfigError(f"{where}: {server.url!r} is no address of a server, such as http://127.0.0.1:8000.")
    _check_events(server, where)
    if server.key is not None and server.key_file is not None:
        raise ConfigError(f"{where}: give {server.shown} either key or key_file.")
    if "@" in parts.netloc and (server.key is not None or server.key_file is not None):
        raise ConfigError(f"{where}: give {server.shown} either a key or a user and a password in its url.")
    key = server.key
    if server.key_file is not None:
        try:
            key = Path(server.key_file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"{where}: key_file of {server.shown} cannot be read: {error}.") from error
    return msgspec.structs.replace(server, url=url.rstrip("/").removesuffix(_API), key=key, key_file=None)
