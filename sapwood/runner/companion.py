"""A smaller model, or a head, that runs beside the model that answers, and drafts for it.

It keeps keys and values of its own for the same tokens, in groups of the same page tables: what a step feeds, it
feeds too, in the same launch, so that cached prefixes, preemption and windows hold for it without a word. A whole model stays behind
running answers while nobody wants its drafts (`runner/trail.py`). Before a step that feeds drafts of its own, it takes in what it has missed and runs ahead token by token:

    fed      fed + 1 ... fed + k
    │ newest │ drafts           │      pass i feeds position fed + i and writes what it draws behind
    └─ pass 0, 1, ... k - 1 ─┘         the step itself then feeds all of them, to both models

It draws by the request's own seed, position and settings, so that it is as often right as it can be. What it feeds is
overwritten by the step; what it leaves in the table are drafts like any others.

Suffix legend: T tokens, R rows, N heads, P proposing rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import Backend, Batch, RowLimits, Shared
from sapwood.base.kv import KVGroup
from sapwood.base.plan import Ints, Pages, Plan, Propose
from sapwood.base.ragged import spread
from sapwood.runner import frame
from sapwood.runner.batch import Batcher, spans_of
from sapwood.runner.frame import Frame, Kind
from sapwood.runner.graphs import Graphs
from sapwood.runner.seers import Seer
from sapwood.runner.table import Table
from sapwood.runner.trail import Trail
from sapwood.runner.transfer import download, upload
from sapwood.sampling.fast import draw

_MOST_KNOWN = 256  # sets of rows that frames are kept for


class Companion:
    """Drafts by a `seer`, whose keys and values `backends` keep, beside the model whose slots `table` has; `groups` are those
    of both. A pass has `max_tokens` tokens at most."""

    def __init__(
        self, seer: Seer, backends: Sequence[Backend], table: Table, groups: Sequence[KVGroup], *, max_tokens: int
    ) -> None:
        self.seer, self._backends = seer, backends
        # What is let go of, or cannot be computed again from the middle, has to be computed in time.
        mine = groups[len(groups) - len(backends) :]
        trails = seer.trails and all(group.kind.divisible and group.window is None for group in mine)
        rewind = max(group.rewind for group in groups)
        self.trail = Trail(num_slots=table.nobody, rewind=rewind, most=max_tokens) if trails else None
        self.graphs: Graphs[Frame] | None = None
        self._table, self._ahead = table, table.shadow()
        self._batcher = Batcher(self._ahead, groups)
        self._known: dict[bytes, Plan] = {}
        self._versions = 0

    # -- behind the other -----------------------------------------------------------------------------------------

    @property
    def taps(self) -> Sequence[int]:
        return self.seer.taps

    def leaves(self, plan: Plan) -> bool:
        return self.trail is not None and self.trail.leaves(plan)

    def follow(self, batch: Batch, hidden_TD: Tensor, taken: Sequence[Tensor]) -> None:
        """See `step.Follower`."""
        self._plan(batch)
        self.seer.follow(batch, hidden_TD, taken)

    def _plan(self, batch: Batch) -> None:
        for backend in self._backends:
            backend.plan(batch)

    # -- ahead of it ----------------------------------------------------------------------------------------------

    def propose(self, plan: Plan) -> Tensor | None:
        """Write the drafts that the plan wants of it. Everything else that comes before the step's forward is done. If they are told, returns
        a copy on its way to the host, row after row."""
        wanted = plan.part(Propose)
        if wanted is None:
            return None
        self._table.turn(*frame.changes(plan.part(Pages), self._table))
        if self.trail is not None:
            for missed in self.trail.missed(plan):
                self._take_in(missed)
        self.run(wanted.slots_P, wanted.counts_P)
        return self._told(wanted) if wanted.told else None

    def _told(self, propose: Propose) -> Tensor:
        of_rows, of_drafts = spread(propose.counts_P)
        slots_N, drafts_N = upload([propose.slots_P[of_rows], of_drafts], self._table.device)
        return download(self._table.tokens_SL[slots_N, self._table.fed_S[slots_N] + 1 + drafts_N])

    def _take_in(self, missed: Plan) -> None:
        limits = RowLimits(decodes=0, spans=missed.num_rows)
        made = frame.exact(missed, self._ahead)
        batch, _ = self._batcher.make(made, missed.num_tokens, limits=limits, spans=spans_of(missed))
        self._plan(batch)
        self.seer.advance(batch)

    def run(self, slots_P: Ints, counts_P: Ints) -> None:
        """Draft so many tokens behind what is fed in each slot."""
        self._ahead.fed_S.copy_(self._table.fed_S)
        order = np.argsort(-counts_P, kind="stable")
        slots_P, counts_P = slots_P[order], counts_P[order]
        for place in range(int(counts_P[0])):
            self._draft_one(self._rows(slots_P[: int((counts_P > place).sum())]))

    def _draft_one(self, rows: Plan) -> None:
        if self.graphs is None or self.graphs.run(rows) is None:
            limits = RowLimits(decodes=rows.num_rows, spans=0)
            self._pass(frame.exact(rows, self._ahead), rows.num_tokens, limits, None)

    def _pass(self, frame: Frame, num_tokens: int, limits: RowLimits, runs: Shared | None) -> Frame:
        """One pass: a token of each row is fed, and what is drawn behind it is written; may be captured."""
        batch, heads = self._batcher.make(frame, num_tokens, limits=limits, shared=runs)
        self._plan(batch)
        logits_NV = self.seer.logits(self.seer.advance(batch).index_select(0, heads.last_N))
        drawn_N = torch.empty_like(heads.draws_N)
        draw(logits_NV, self._table.settings_SK, heads.draws_N, heads.ends_N, drawn_N)
        self._batcher.settle(frame, heads, drawn_N, Kind.DRAWN)
        return frame

    def _rows(self, slots_P: Ints) -> Plan:
        """A step of these rows, a token each. The same rows again are the same version."""
        key = slots_P.tobytes()
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._versions += 1
            self._known[key] = _single(slots_P, self._versions)
        return self._known[key]

    def make_graphs(self, *, max_rows: int) -> Graphs[Frame]:
        """Graphs of passes, none of which is captured yet."""
        return Graphs(self._pass, self._ahead, max_rows=max_rows, max_tokens=max_rows, tile=1, single=True)


def _single(slots: Ints, version: int) -> Plan:
    ones = np.ones_like(slots)
    return Plan(
        num_steady=len(slots),
        version=version,
        slots_R=slots,
        starts_R=np.zeros_like(slots),
        counts_R=ones,
        heads_R=ones,
        owners_R=np.zeros(len(slots), np.int64),
        number=-1,
    )
