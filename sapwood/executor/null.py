"""An executor that computes nothing and answers at once: what remains is the cost of the host."""

from __future__ import annotations

import numpy as np

from sapwood.base.plan import Bits, LatePart, Outcome, Plan


class NullExecutor:
    """Every head draws `token`, and every draft was right. Nothing is stored and nothing is checked; FakeExecutor does that.

    Masks of `vocab_size` tokens are taken and ignored.
    """

    def __init__(self, token: int = 0, *, vocab_size: int = 1000) -> None:
        self.token = token
        self._width = -(-vocab_size // 32)

    def forward(self, plan: Plan) -> Plan:
        return plan

    def room(self, num_rows: int, width: int | None = None) -> Bits:
        return np.empty((num_rows, width or self._width), np.int32)

    def sample(self, work: Plan, late: tuple[LatePart, ...] = ()) -> None:
        pass

    def result(self, work: Plan) -> Outcome:
        return Outcome(np.full(work.num_heads, self.token, np.int32), work.heads_R, {}, {}, {})

    def tidy(self) -> bool:
        return False

    def shutdown(self) -> None:
        pass
