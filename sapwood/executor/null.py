"""An executor that computes nothing and answers at once: what remains is the cost of the host."""

from __future__ import annotations

import numpy as np

from sapwood.base.plan import Outcome, Plan


class NullExecutor:
    """Every row that yields yields `token`. Nothing is stored and nothing is checked; FakeExecutor does that."""

    def __init__(self, token: int = 0) -> None:
        self.token = token

    def forward(self, plan: Plan) -> Plan:
        return plan

    def sample(self, work: Plan) -> None:
        pass

    def result(self, work: Plan) -> Outcome:
        return Outcome(np.full(work.num_rows, self.token, np.int32), {}, {}, {})

    def tidy(self) -> bool:
        return False

    def shutdown(self) -> None:
        pass
