"""Who may pass: the keys, the operator's key and socket, and the paths that are open to all."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers

from sapwood.base.errors import RequestError
from sapwood.config.options import ServerConfig
from sapwood.server.keys import ANYBODY, OPERATOR, Keyring, Tenant, digest_of
from sapwood.server.limits import Account, Accounts

_OPEN = frozenset({"/health", "/ready", "/version"})  # load balancers ask these, without a key
_METRICS = "/metrics"


class Guard:
    """Asked before anything else that a request wants. Raises ConfigError for keys that cannot be used.

    With keys, every path needs one but those that are open, those that do not exist included. What operators do needs the
    admin key, or the admin socket, in any case.

    Attributes:
        accounts: What each tenant has taken.
    """

    def __init__(self, options: ServerConfig) -> None:
        self.accounts = Accounts()
        self.renew(options)

    def renew(self, options: ServerConfig) -> None:
        """Go by other options from now on; accounts stay. Raises ConfigError, and then nothing is changed."""
        self._keyring = Keyring(options)
        self._admin = digest_of(options.admin_api_key) if options.admin_api_key else None
        access = options.metrics_access or ("key" if options.api_keys_file else "open")
        self._metrics_for_operators = access == "admin"
        self._open = _OPEN | ({_METRICS} if access == "open" else frozenset())

    @property
    def keyed(self) -> bool:
        """Whether clients need a key."""
        return bool(self._keyring.table.tenants)

    def open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return path in self._open

    def named(self, name: str) -> Account:
        """The account of a tenant, for work that outlives its request. Raises RequestError (401) if its key has gone."""
        tenant = {tenant.name: tenant for tenant in (ANYBODY, OPERATOR)}.get(name) or self._keyring.table.by_name.get(
            name
        )
        if tenant is None:
            raise RequestError(f"There is no key {name!r} any more.", status=401, code="invalid_api_key")
        return self.accounts.of(tenant)

    def admit(self, headers: Headers, path: str, *, trusted: bool, free: bool = False) -> Account:
        """Whose request it is; `trusted`: it came over the admin socket; `free`: it asks for nothing that needs a key. Raises
        RequestError (401, 403) if it may not pass."""
        tenant = self._tenant(headers, free or self.open(path), trusted=trusted)
        if path == _METRICS and self._metrics_for_operators:
            self.check_operator(tenant, path)
        return self.accounts.of(tenant)

    def check_operator(self, tenant: Tenant, path: str) -> None:
        """Raise RequestError (403) unless the tenant is the operator."""
        if tenant is not OPERATOR:
            how = (
                "start the server with --admin-api-key KEY or --admin-socket PATH to turn such routes on"
                if self._admin is None
                else "send the server's admin key"
            )
            raise RequestError(f"{path} is for operators: {how}.", status=403, code="admin_only")

    def _tenant(self, headers: Headers, free: bool, *, trusted: bool) -> Tenant:
        table = self._keyring.table
        if not table.tenants and self._admin is None:  # nobody has a key to look for
            return OPERATOR if trusted else ANYBODY
        key = given_key(headers)
        found = table.find(key)
        operator = self._admin is not None and hmac.compare_digest(digest_of(key), self._admin)
        if operator or trusted:
            return OPERATOR
        if found is None and table.tenants and not free:
            raise RequestError(
                "Missing or wrong API key; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
                status=401,
                code="invalid_api_key",
            )
        return found or ANYBODY


def given_key(headers: Headers) -> bytes:
    """The key that a request brings, OpenAI's way or Anthropic's; b"" without one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    key = given if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key.strip().encode("latin-1")
