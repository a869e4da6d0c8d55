"""Sleep: an engine gives back what it holds of its device, and takes it again when it is woken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from sapwood.base.stake import Stake
from sapwood.base.weights import ALL, Held, Level
from sapwood.cache import KVCache
from sapwood.engine import lean
from sapwood.engine.renewal import Renewal
from sapwood.engine.sendings import Sendings
from sapwood.executor.base import Executor
from sapwood.scheduler import Scheduler

log = logging.getLogger(__name__)

_STORING_SECONDS = 5.0  # for pages that are on their way to a store


class Asleep(Stake):
    """Has everybody wait.

    Attributes:
        away: What is given back.
    """

    def __init__(self) -> None:
        self.away: set[Held] = set()

    @property
    def halts(self) -> bool:  # type: ignore[override]
        return bool(self.away)


class Sleep:
    """Carries out sleep and waking while no step is in flight. Who runs gives up pages, as if somebody needed them more, and goes on
    when all is there again. `fixed` says why weights cannot be read again, if so."""

    def __init__(
        self, stake: Asleep, executor: Executor, scheduler: Scheduler, kv: KVCache, fixed: Callable[[], str | None]
    ) -> None:
        self._stake, self._executor, self._scheduler, self._kv, self._fixed = stake, executor, scheduler, kv, fixed
        self._counts, self._seconds = {"sleeps": 0, "wakes": 0}, {"sleep_seconds": 0.0, "wake_seconds": 0.0}

    @property
    def commands(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        return {"sleep": self._sleep, "wake_up": self._wake}

    def status(self) -> dict[str, Any]:
        return {"asleep": sorted(self._stake.away)}

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        return dict(self._counts), dict(self._seconds)

    def _sleep(self, *, level: Level = 1, held: Sequence[Held] = ALL) -> dict[str, Any]:
        """Give back `held`, of which weights take the KV cache with them. Answers with `error` where nothing has changed."""
        began, away = perf_counter(), self._stake.away
        if level == 2 and "weights" in held and (why := self._fixed()) is not None:
            return {"error": why, **self.status()}
        if wanted := {*held} - away:
            self._empty()
            self._executor.release([one for one in ALL if one in wanted], level)
            away |= {"kv_cache", *wanted}
            lean.shed()
            self._note("sleep", began)
        return self.status()

    def _wake(self, *, held: Sequence[Held] = ALL) -> dict[str, Any]:
        """Take `held` again, or what is given back of it."""
        began, away = perf_counter(), self._stake.away
        if wanted := {*held} & away:
            self._executor.restore([one for one in ALL if one in wanted])
            away -= wanted
            self._note("wake", began)
        return self.status()

    def _empty(self) -> None:
        """Nobody runs, no page of the device has anything, and what stores are to keep is there."""
        self._scheduler.retract()
        until = monotonic() + _STORING_SECONDS
        while self._scheduler.tidy() and monotonic() < until:
            pass
        self._scheduler.empty()
        self._kv.flush()

    def _note(self, what: str, began: float) -> None:
        seconds = perf_counter() - began
        self._counts[f"{what}s"] += 1
        self._seconds[f"{what}_seconds"] += seconds
        log.info("%s in %.2f s; away: %s", what, seconds, ", ".join(sorted(self._stake.away)) or "nothing")


class Changes(NamedTuple):
    """What may be done to an engine between steps, and what is told of it."""

    commands: Mapping[str, Callable[..., dict[str, Any]]]
    gauges: tuple[Callable[[], tuple[dict[str, int], dict[str, float]]], ...]
    status: Callable[[], dict[str, Any]]
    version: Callable[[], str]

    def beside(self, status: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Arguments of the `Engine`, beside its own, whose status has what others say too."""
        told = {"status": lambda: {**status(), **self.status()}, "weight_version": self.version}
        return {"alone": self.commands, **told}


def changing(
    asleep: Asleep, executor: Executor, scheduler: Scheduler, kv: KVCache, *, adapted: bool = False
) -> Changes:
    """Other weights, and sleep; of a model with adapters, which lie beside its weights, these stay where they are."""
    renewal = Renewal(executor, scheduler, kv, lambda: asleep.away, adapted=adapted)
    sleep = Sleep(asleep, executor, scheduler, kv, renewal.fixed)
    return Changes(
        {**renewal.commands, **sleep.commands, **Sendings(executor).commands},
        (renewal.gauges, sleep.gauges),
        lambda: {**renewal.status(), **sleep.status()},
        lambda: renewal.version,
    )
