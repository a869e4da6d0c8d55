"""The protocol of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.config.facts import DeviceFacts


class Mark(Protocol):
    """A point in the order of what a device does."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""
        ...

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...


class Device(Protocol):
    """One device, for one engine. `place` is what PyTorch calls it."""

    place: torch.device

    @property
    def facts(self) -> DeviceFacts:
        """As it was found when they were first asked for."""
        ...

    def can(self, ability: Ability) -> bool: ...

    def use(self) -> None:
        """What this process does next is for this device."""
        ...

    def mark(self) -> Mark | None:
        """Behind everything that it was given so far; None where that is done when the call returns."""
        ...

    def aside(self, tensor: Tensor) -> Tensor:
        """Host memory of `Ability.PINNED` on the device, on its way beside what is computed now, before what comes next."""
        ...

    def send(self, rows: Tensor, targets: Sequence[Tensor]) -> None:
        """Copy rows of a tensor to host memory of `Ability.PINNED`, once they are computed, beside what comes next."""
        ...

    def sent(self) -> Mark | None:
        """Behind all that was sent so far; None where that is done when the call returns."""
        ...

    def release(self) -> None:
        """Give back the memory that PyTorch keeps for later."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes in all, and those that other programs hold, or this one without PyTorch."""
        ...

    def peak(self, run: Callable[[], None]) -> int:
        """The most bytes that PyTorch has held during a call."""
        ...

    def taken(self, make: Callable[[], object]) -> int:
        """Bytes that are gone after a call, those that PyTorch keeps included."""
        ...
