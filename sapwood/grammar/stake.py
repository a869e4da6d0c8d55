"""Grammars as a stake: a request waits until its own is compiled, its tokens are masked, and what is forced is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sapwood.base.plan import Bools, Longs, Masked, Masks, Part, Plan, Rows
from sapwood.base.ragged import rows_of
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Landed, Ready, Refusal, Ruling, Stake
from sapwood.grammar.constraints import Constraints, Head


class GrammarStake(Stake):
    """Has a say in requests that are restricted, in any way: by a grammar, in the tokens they may use, in how long they think."""

    rules = True

    def __init__(self, constraints: Constraints, slots: Slots) -> None:
        self.constraints = constraints
        self._slots = slots
        self._mine: Bools = np.zeros(len(slots.owner), np.bool_)
        self._number = 0
        self._masked: tuple[int, Masked | None] | None = None  # of plain steps, by the version of their rows

    def concerns(self, request: Request) -> bool:
        return request.params.restricted

    def ready(self, request: Request) -> Ready:
        if request.constraint is not None and not request.constraint.spoiled:
            return NOW
        found = self.constraints.begin(request)
        return LATER if found is None else Refusal(found) if found else NOW

    def wait(self, seconds: float) -> None:
        self.constraints.wait(seconds)

    def forget(self, request: Request) -> None:
        self.constraints.forget(request)

    def seat(self, request: Request, number: int) -> int:
        self._mine[request.slot] = True
        self._number += 1
        return len(request.tokens)

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        if request.running:
            self._mine[request.slot] = False
            self._number -= 1

    # -- masks ----------------------------------------------------------------------------------------------------

    def parts(self, rows: Rows) -> Sequence[Part]:
        masked = self._find(rows)
        return () if masked is None else (masked,)

    def late(self, rows: Rows) -> bool:
        return self._find(rows) is not None

    def _find(self, rows: Rows) -> Masked | None:
        if not self._number:
            return None
        if not rows.plain:
            return _masked(np.flatnonzero(np.repeat(self._mine[rows.slots_R], rows.heads_R)))
        if self._masked is None or self._masked[0] != rows.version:
            self._masked = rows.version, _masked(np.flatnonzero(self._mine[rows.slots_R]))
        return self._masked[1]

    def fill(self, plan: Plan, alive: Bools) -> Masks | None:
        """Masks of all heads of restricted rows. All tokens are allowed where it does not matter any more."""
        if plan.part(Masked) is None:
            return None
        s = self._slots
        heads: list[Head | None] = []
        for row in np.flatnonzero(self._mine_then(plan) & (plan.heads_R > 0)).tolist():
            slot, count = int(plan.slots_R[row]), int(plan.heads_R[row])
            if not alive[row]:
                heads += [None] * count
                continue
            known = int(s.known[slot])
            drafts = s.history[slot, known : known + count - 1].tolist()
            heads.append(Head(s.of(slot), known, drafts))
        return Masks(self.constraints.masks(heads))

    def _mine_then(self, plan: Plan) -> Bools:
        """Which rows were restricted when the plan was made: of those that are gone the masks are expected still."""
        mine = plan.part(Masked)
        assert mine is not None
        found = np.zeros(plan.num_rows, np.bool_)
        found[rows_of(plan.heads_R)[mine.heads_M]] = True
        return found

    # -- landing --------------------------------------------------------------------------------------------------

    def land(self, landed: Sequence[Landed]) -> Mapping[int, Ruling]:
        return self.constraints.accept(landed, crowd=self._slots.num_running)


def _masked(heads: Longs) -> Masked | None:
    return Masked(heads) if len(heads) else None
