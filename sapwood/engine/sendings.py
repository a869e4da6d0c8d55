"""Weights that a trainer sends in a group of processes: the commands that have the executor join, leave and receive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sapwood.base.errors import UserError
from sapwood.base.weights import Group, Sent
from sapwood.executor.base import Executor


class Sendings:
    """Carries them out while no step is in flight. What comes is written to a folder; it is an update (`engine/renewal.py`) that has it taken from
    there, all or nothing."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @property
    def commands(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        return {"join_group": self._join, "leave_group": self._leave, "receive_weights": self._receive}

    def _join(self, **group: Any) -> dict[str, Any]:
        return _tried(lambda: self._executor.join(msgspec.convert(group, Group)))

    def _leave(self, *, group_name: str) -> dict[str, Any]:
        return _tried(lambda: self._executor.leave(group_name))

    def _receive(self, *, folder: str, **sent: Any) -> dict[str, Any]:
        return _tried(lambda: self._executor.receive(msgspec.convert(sent, Sent), folder))


def _tried(work: Callable[[], None]) -> dict[str, Any]:
    """Answers with `error` where it cannot be."""
    try:
        work()
    except UserError as error:
        return {"error": str(error)}
    return {}
