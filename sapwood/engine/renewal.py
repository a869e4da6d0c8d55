"""Other weights for a model that runs, given by whoever trains it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from sapwood.base.errors import Lost, UserError
from sapwood.base.weights import FIRST, Given, Held
from sapwood.cache import KVCache
from sapwood.cache.epochs import turn
from sapwood.executor.base import Executor
from sapwood.scheduler import Scheduler

log = logging.getLogger(__name__)

_ADAPTED = "LoRA adapters lie beside the weights that they were made for, which stay where they are"


class Renewal:
    """Carries out updates while no step is in flight. Who runs goes on from what has been said, computed anew by the new weights.

    Attributes:
        version: Of the weights, as whoever gave them calls them; a number where that was not said.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        kv: KVCache,
        away: Callable[[], set[Held]],
        *,
        adapted: bool = False,
    ) -> None:
        self._executor, self._scheduler, self._kv, self._away = executor, scheduler, kv, away
        self._adapted = adapted
        self.version = FIRST
        self._count, self._seconds = 0, 0.0

    @property
    def commands(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        return {"update_weights": self._update, "check_weights": self._check}

    def fixed(self) -> str | None:
        """Why the weights cannot be read again from where they were read at the start; None if they can."""
        if self._adapted:
            return f"{_ADAPTED}: use level 1."
        if not self._count:
            return None
        return f"The weights are those of an update ({self.version}), which the model's files have not: use level 1."

    def status(self) -> dict[str, Any]:
        return {"weight_version": self.version}

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        return {"weight_updates": self._count}, {"weight_update_seconds": self._seconds}

    def _check(self, *, version: str | None = None, **given: Any) -> dict[str, Any]:
        """Whether such an update would be taken; with `error` where it would not. Nothing changes."""
        return self._status_or_error(Given(**given))

    def _status_or_error(self, wanted: Given) -> dict[str, Any]:
        if self._adapted:
            return {"error": f"{_ADAPTED}: start the server without them.", **self.status()}
        if "weights" in self._away():
            return {"error": "The weights are released: resume them first.", **self.status()}
        try:
            self._executor.check_weights(wanted)
        except UserError as error:
            return {"error": str(error), **self.status()}
        return self.status()

    def _update(self, *, version: str | None = None, **given: Any) -> dict[str, Any]:
        """`given` are fields of `Given`. Answers with `error` where nothing has changed. Raises Lost where the weights are half old and
        half new."""
        began, wanted = perf_counter(), Given(**given)
        if "error" in (found := self._status_or_error(wanted)):
            return found
        self._scheduler.empty()
        try:
            self._executor.take_weights(wanted)
        except Exception as error:
            raise Lost(
                f"an update of weights has failed midway, so that they are half old and half new: {error}"
            ) from error
        turn(self._kv)
        self._count += 1
        self.version = str(self._count) if version is None else version
        seconds = perf_counter() - began
        self._seconds += seconds
        log.info("weights of version %s from %s, in %.2f s", self.version, wanted.path, seconds)
        return {"seconds": round(seconds, 3), **self.status()}
