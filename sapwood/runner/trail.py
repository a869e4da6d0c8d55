"""Where a model that drafts has stayed behind the one that answers.

It follows prompts as they are computed. Behind running answers it stays while nobody wants its drafts, and takes in what it has missed, all
at once, before it drafts again; so a step without its drafts costs what it costs without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sapwood.base.plan import Admissions, Bools, Ints, Plan, Propose

_NOBODY = 0  # owns no slot; steps that are only timed are nobody's
_NOTHING = -1  # has been missed


class Trail:
    """By slot, from which position on it has missed tokens of the request there. It takes in `most` tokens at once; rows may be behind
    where the host thinks that they start, by `rewind` positions."""

    def __init__(self, *, num_slots: int, rewind: int, most: int) -> None:
        self._since: Ints = np.full(num_slots, _NOTHING, np.int32)
        self._rewind, self._most = rewind, most

    def missed(self, plan: Plan) -> Iterator[Plan]:
        """What it has to take in before it drafts in this step, as plans of its own."""
        if (propose := plan.part(Propose)) is None:
            return
        mine: Bools = np.isin(plan.slots_R, propose.slots_P) & (self._since[plan.slots_R] != _NOTHING)
        slots, ends = plan.slots_R[mine], plan.starts_R[mine]
        starts, each = self._since[slots], max(1, self._most // max(1, len(slots)))
        self._since[slots] = _NOTHING
        while (left := starts < ends).any():
            slots, starts, ends = slots[left], starts[left], ends[left]
            counts = np.minimum(ends - starts, each).astype(np.int32)
            yield _chunks(slots, starts, counts)
            starts = starts + counts

    def leaves(self, plan: Plan) -> bool:
        """Whether a step is left for later: it has no prompts, and none of its drafts."""
        if (admissions := plan.part(Admissions)) is not None:
            self._since[[admit.slot for admit in admissions.admits]] = _NOTHING
        if plan.num_steady < plan.num_rows or plan.part(Propose) is not None:
            return False
        new = (self._since[plan.slots_R] == _NOTHING) & (plan.owners_R != _NOBODY)
        if new.any():
            self._since[plan.slots_R[new]] = np.maximum(plan.starts_R[new] - self._rewind, 0)
        return True


def _chunks(slots: Ints, starts: Ints, counts: Ints) -> Plan:
    return Plan(
        num_steady=0,
        version=-1,
        slots_R=slots,
        starts_R=starts,
        counts_R=counts,
        heads_R=np.zeros_like(slots),
        owners_R=np.zeros(len(slots), np.int64),
        number=-1,
    )
