"""What the engine knows of a device."""

from __future__ import annotations

from typing import Any, Protocol

from sapwood.base.plan import Bits, LatePart, Outcome, Plan


class Executor(Protocol):
    """Runs plans in the order in which they are given.

    For each plan the engine calls `forward`, then `sample`, then `result`, once each. Plan N + 1 may be forwarded
    before the result of N is asked for; if it is late, it is sampled after that. Everything a plan writes happens after
    everything earlier plans read or write, so pages and slots may change hands from one plan to the next.
    """

    def forward(self, plan: Plan) -> Any:
        """Start the step's forward and return a handle; does not wait for the device."""
        ...

    def room(self, num_rows: int, width: int | None = None) -> Bits:
        """Memory for the masks of so many rows ([M, W] int32), from which the device reads fast.

        The caller fills it before the next `sample`. `width` is W, as many words as the vocabulary needs where it is
        not given.
        """
        ...

    def sample(self, work: Any, late: tuple[LatePart, ...] = ()) -> None:
        """Choose the tokens of the rows with heads; does not wait for the device.

        `late` are parts that could not be made before: `Masks` if the plan has a `Masked`.
        """
        ...

    def result(self, work: Any) -> Outcome:
        """Wait until the step is done and return what it yielded."""
        ...

    def tidy(self) -> bool:
        """Do a short piece of work that later steps will be glad of, while no step is wanted; False if there is none."""
        ...

    def shutdown(self) -> None: ...
