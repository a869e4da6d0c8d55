"""Adapters on their way to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sapwood.base.adapter import Adapter
from sapwood.base.stake import Ready


class AdapterHost(Protocol):
    """Adapters in the host's memory, ready to be copied to a device: read by a thread, and known by their ids.

    Attributes:
        num_slots: How many the device holds at once; plans say which (`base.plan.Adapters`).
    """

    @property
    def num_slots(self) -> int: ...

    def fetch(self, adapter: Adapter) -> None:
        """Begin to read it, unless it is there, or on its way, or all that there is room for are. One that has been away longest may have to
        go for it."""
        ...

    def knows(self, adapter: Adapter) -> bool:
        """Whether it has been asked to fetch it, and has not forgotten that since."""
        ...

    def fetched(self, adapter: Adapter) -> Ready:
        """NOW: it is there; LATER: it is being read; a Refusal says why it cannot be had, once, and then it is forgotten. One that it
        does not know is fetched."""
        ...

    def lend(self, slot: int, adapter: Adapter) -> None:
        """The next plan has it go to that slot of the device: it is at hand until then, whatever else is fetched or forgotten."""
        ...

    def forget(self, adapter: Adapter) -> None:
        """It will not be asked for again; what the device holds of it stays until its slot is needed."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when something has been read, or after that time."""
        ...

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """Counters and seconds since the start."""
        ...

    def close(self) -> None: ...
