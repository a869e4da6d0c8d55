"""Who may ask, and how much: the keys from options and from a file that is read again whenever it changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError
from sapwood.config.option import names_in
from sapwood.config.options import ServerConfig

log = logging.getLogger(__name__)

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Limit = Annotated[int, Meta(ge=1, le=10**12)]

MOST_KEYS = 10_000
_MOST_BYTES = 8 << 20
_LOOK_SECONDS = 1.0  # between two looks at the file
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whoever has a key, and what they may take.

    Attributes:
        name: How logs and metrics call them; "" is anybody, where there are no keys.
        digest: The SHA-256 of the key, in hexadecimal digits.
        requests_per_minute, tokens_per_minute, parallel_requests: Limits; None is none.
        priority: That of their requests, and the most that these may ask for; None leaves it to them.
        weight: Their share beside others who wait.
        group: Cached prefixes are shared with those of the same; by default with nobody.
        shares: Cached prefixes are shared with all who do.
    """

    name: str
    digest: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None
    priority: int | None = None
    weight: float = 1.0
    group: str | None = None
    shares: bool = False

    def salted(self, salt: str) -> str:
        """What keeps their cached prefixes apart, given the request's own word. Nobody's can stand for another's."""
        if self.shares:
            return salt
        return f"group {self.group}\0{salt}" if self.group is not None else f"key {self.name}\0{salt}"

    def ranked(self, priority: int) -> int:
        """The priority of a request that asks for one (0: for none)."""
        return priority if self.priority is None else min(priority or self.priority, self.priority)


ANYBODY = Tenant(name="", shares=True)
OPERATOR = Tenant(name="admin", shares=True)
"""Who has the admin key, or comes over the admin socket."""


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key as its file has it."""

    name: Name
    key: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    sha256: str | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    parallel_requests: Limit | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    group: Name | None = None

    def tenant(self, *, shares: bool) -> Tenant:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError(f"{self.name}: give either key or sha256")
        if self.sha256 is not None and not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"{self.name}: sha256 must be 64 hexadecimal digits, as `printf %s KEY | sha256sum` says")
        given = msgspec.structs.asdict(self)
        key, digest = given.pop("key"), given.pop("sha256")
        return Tenant(digest=digest_of(key) if key is not None else digest.lower(), shares=shares, **given)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[_Entry]


def digest_of(key: str | bytes) -> str:
    """The SHA-256 of a key, which is bytes on the line and UTF-8 where it is typed."""
    raw = key if isinstance(key, bytes) else key.encode("utf-8", "surrogateescape")
    return hashlib.sha256(raw).hexdigest()


class Table:
    """Some tenants. Raises ValueError if two have the same name or key."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self.tenants = tuple(tenants)
        self.by_name = {tenant.name: tenant for tenant in tenants}
        if len(self.tenants) > MOST_KEYS:
            raise ValueError(f"{len(self.tenants)} keys are too many; at most {MOST_KEYS}")
        if len(self.by_name) < len(self.tenants):
            raise ValueError("two keys have the same name")
        if len({tenant.digest for tenant in tenants}) < len(self.tenants):
            raise ValueError("two names have the same key")
        if OPERATOR.name in self.by_name:
            raise ValueError(f"the name {OPERATOR.name!r} is the operator's; choose another")

    def find(self, key: bytes) -> Tenant | None:
        """Whose key it is. Takes the same time whoever's it is, and wherever a wrong one differs."""
        given, found = digest_of(key), None
        for tenant in self.tenants:
            if hmac.compare_digest(given, tenant.digest):
                found = tenant
        return found


class Keyring:
    """The keys of the options and of the file that these name, which may change while the server runs.

    A file that cannot be used is an error at the start (ConfigError); later it is logged, and the last table stays.
    """

    def __init__(self, options: ServerConfig) -> None:
        self._typed = _typed(options)
        self._shares = options.share_prefixes
        self._path = Path(options.api_keys_file).expanduser() if options.api_keys_file else None
        self._looked = monotonic()
        self._state = self._seen()
        self._table = self._read()

    @property
    def table(self) -> Table:
        """The keys now."""
        now = monotonic()
        if self._path is not None and now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._table

    def _look(self) -> None:
        state = self._seen()
        if state == self._state:
            return
        self._state = state
        try:
            self._table = self._read()
        except ConfigError as error:
            log.error("%s The keys stay as they were.", error)
        else:
            log.info("%s has changed: %d keys", self._path, len(self._table.tenants))

    def _seen(self) -> tuple[int, ...] | None:
        """What differs when the file has changed."""
        if self._path is None:
            return None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> Table:
        try:
            tenants = [] if self._path is None else _entries(self._path, shares=self._shares)
            return Table([*self._typed, *tenants])
        except OSError as error:
            raise ConfigError(f"--api-keys-file {self._path}: {error.strerror or error}.") from error
        except ValueError as error:  # what TOML, JSON and msgspec raise, too
            where = "--api-key" if self._path is None else f"--api-keys-file {self._path}"
            raise ConfigError(f"{where}: {error}.") from error


def _typed(options: ServerConfig) -> list[Tenant]:
    """The keys of --api-key, which have no limits."""
    keys = names_in(options.api_key)
    return [
        Tenant(name=f"key{number}", digest=digest_of(key), shares=options.share_prefixes)
        for number, key in enumerate(dict.fromkeys(keys), 1)
    ]


def _entries(path: Path, *, shares: bool) -> list[Tenant]:
    """Raises OSError, or ValueError for a file that cannot be used."""
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    text = raw.decode()
    content: Any
    match path.suffix:
        case ".toml":
            content = tomllib.loads(text)
        case ".json":
            content = json.loads(text)
        case _:
            raise ValueError("the name must end in .toml or .json")
    entries = msgspec.convert(content, _File).keys
    if not entries:
        raise ValueError("it has no keys; without any nobody could ask")
    return [entry.tenant(shares=shares) for entry in entries]
