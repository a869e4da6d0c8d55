"""How much a key may take: requests and tokens a minute, and requests at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from sapwood.base.errors import LimitReached
from sapwood.server.keys import ANYBODY, Tenant

_MINUTE = 60.0

Clock = Callable[[], float]


class Bucket:
    """So many a minute: full at first, and filled again steadily. It may come to owe."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._since = now

    def level(self, now: float) -> float:
        """What may be taken."""
        filled = self._level + (now - self._since) * self.per_minute / _MINUTE
        self._level, self._since = min(filled, float(self.per_minute)), now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """A negative amount gives back."""
        self._level = min(self.level(now) - amount, float(self.per_minute))

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken, 0 if it may be now. No more than all is ever there."""
        missing = min(amount, self.per_minute) - self.level(now)
        return max(missing, 0.0) * _MINUTE / self.per_minute

    def change(self, per_minute: int, now: float) -> None:
        """Another limit; what was taken stays taken."""
        taken = self.per_minute - self.level(now)
        self.per_minute = per_minute
        self._level = per_minute - taken


@dataclass(slots=True)
class Used:
    """Tokens that a generation has used so far, kept right by whoever runs it."""

    tokens: int


class Account:
    """What a tenant has taken of what they may take."""

    def __init__(self, tenant: Tenant = ANYBODY, clock: Clock = monotonic) -> None:
        self.tenant = tenant
        self.running = 0
        self._clock = clock
        self._requests = _bucket(None, tenant.requests_per_minute, clock())
        self._tokens = _bucket(None, tenant.tokens_per_minute, clock())

    def change(self, tenant: Tenant) -> None:
        """The same tenant with other limits."""
        now = self._clock()
        self.tenant = tenant
        self._requests = _bucket(self._requests, tenant.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, tenant.tokens_per_minute, now)

    def count(self) -> None:
        """One more request has come. Raises LimitReached if there are too many."""
        now = self._clock()
        if self._requests is not None:
            self._refuse("requests", self._requests, 1, now)
            self._requests.take(1, now)

    @contextmanager
    def generating(self, reserve: int) -> Iterator[Used]:
        """Around a request's generations, for which `reserve` tokens are set aside, at most all of a minute; what is left or
        missing in the end is settled. Raises LimitReached if there is not so much, or too many run already."""
        most = self.tenant.parallel_requests
        if most is not None and self.running >= most:
            raise LimitReached(f"{self.running} requests of your key are running; it may have {most} at once.")
        now, used = self._clock(), Used(0)
        if self._tokens is not None:
            reserve = min(reserve, self._tokens.per_minute)
            self._refuse("tokens", self._tokens, reserve, now)
            self._tokens.take(reserve, now)
        self.running += 1
        try:
            yield used
        finally:
            self.running -= 1
            if self._tokens is not None:
                self._tokens.take(used.tokens - reserve, self._clock())

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The limits, what is left of them, and when all of it is there again, as OpenAI tells them."""
        now, told = self._clock(), []
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told += [
                    (f"x-ratelimit-limit-{name}", str(bucket.per_minute)),
                    (f"x-ratelimit-remaining-{name}", str(max(int(bucket.level(now)), 0))),
                    (f"x-ratelimit-reset-{name}", _duration(bucket.wait(bucket.per_minute, now))),
                ]
        return [(name.encode(), value.encode()) for name, value in told]

    def _refuse(self, what: str, bucket: Bucket, amount: int, now: float) -> None:
        wait = bucket.wait(amount, now)
        if wait:
            left = max(int(bucket.level(now)), 0)
            raise LimitReached(
                f"Your key may take {bucket.per_minute} {what} a minute; {left} are left and {amount} are needed. "
                f"Try again in {_duration(wait)}.",
                retry_after=wait,
            )


class Accounts:
    """An account for each tenant that has come, kept by name."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: Tenant) -> Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant, self._clock)
        elif account.tenant is not tenant:  # its file was read again
            account.change(tenant)
        return account


def _bucket(before: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if before is None:
        return Bucket(per_minute, now)
    before.change(per_minute, now)
    return before


def _duration(seconds: float) -> str:
    """12ms, 6s, 1m30s: rounded up, so that it is not too early then."""
    if seconds < 1:
        return f"{-int(-seconds * 1000 // 1)}ms"
    whole = -int(-seconds // 1)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
