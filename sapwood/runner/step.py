"""One step's forward: from a plan to logits and the tokens that are drawn at once, as a graph where there is one.

Suffix legend: T tokens of the step, R rows, N heads, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sapwood.attention.base import Batch, RowLimits, Shared, Spans, tile_members
from sapwood.base.plan import Plan, Runs
from sapwood.nn.adapted import NoBank
from sapwood.nn.experts import routed, telling
from sapwood.runner import frame, shared
from sapwood.runner.assemble import Rank
from sapwood.runner.batch import Batcher, Heads, spans_of
from sapwood.runner.frame import Frame, Kind
from sapwood.runner.graphs import Graphs
from sapwood.runner.sight import Sight
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload
from sapwood.sampling.fast import draw


@dataclass(frozen=True, eq=False)
class Pass:
    """What a step's forward leaves on the device. `logits_NV` and `drawn_N` (int32) are None where there are no heads.

    `logits_NV` is None of a model without a head too. `drawn_N` are -1 at heads without finite logits, REJECTED behind drafts that were wrong, and mean nothing in rows of
    Kind.SPECIAL. `hidden_TD` is None where nobody will ask for it, and so are `routed_TLK`, the experts that tokens have chosen. All may be overwritten by the next step's.
    """

    frame: Frame
    heads: Heads
    hidden_TD: Tensor | None
    logits_NV: Tensor | None
    drawn_N: Tensor | None
    routed_TLK: Tensor | None = None


class Follower(Protocol):
    """A model that drafts: it computes what the other one does, step by step. `taps` are layers of the other before which it wants
    the hidden states."""

    @property
    def taps(self) -> Sequence[int]: ...

    def leaves(self, plan: Plan) -> bool:
        """Whether it takes nothing in with this step; it will see to it itself. Asked once for each step."""
        ...

    def follow(self, batch: Batch, hidden_TD: Tensor, taken: Sequence[Tensor]) -> None:
        """Take in a step's tokens, their last hidden states, and those before the `taps`; may be captured."""
        ...


class Step:
    """Computes plans on a rank. `vocab_size` logits in `rank.dtype` of `max_heads` heads outlive a graph's launch."""

    def __init__(
        self,
        rank: Rank,
        table: Table,
        *,
        vocab_size: int,
        max_heads: int | None = None,
        follower: Follower | None = None,
        sight: Sight | None = None,
    ) -> None:
        self.batcher = Batcher(table, rank.groups, sight)
        self.tile = tile_members(rank.groups)
        self.graphs: Graphs[Pass] | None = None
        self.graphs_alone: Graphs[Pass] | None = None  # of steps that the follower leaves out
        self.graphs_adapted: Graphs[Pass] | None = None  # of steps some of whose rows have an adapter
        self._bank = rank.bank or NoBank()
        self._rank, self._table, self._follower = rank, table, follower
        self._logits_NV: Tensor | None = None
        self.headless = not rank.model.decoder.writes
        if max_heads is not None:
            self._logits_NV = torch.empty(max_heads, vocab_size, dtype=rank.dtype, device=rank.device.place)

    def make_graphs(
        self, *, max_rows: int, max_tokens: int, drafts: bool, alone: bool = False, adapted: bool = False
    ) -> Graphs[Pass]:
        """Graphs of steps, none of which is captured yet. `alone`: of those that the follower leaves out, which have no prompts; `adapted`: of
        those some of whose rows have an adapter."""
        compute = partial(self.compute_for_graph, None if alone else self._follower, adapted=adapted)
        return Graphs(
            compute,
            self._table,
            max_rows=max_rows,
            max_tokens=max_tokens,
            tile=self.tile,
            drafts=drafts,
            prompts=not alone,
        )

    def forward(self, plan: Plan) -> Pass:
        adapted = self._bank.begin(plan)
        follower, graphs = self._follower, self.graphs_adapted if adapted else self.graphs
        if follower is not None and follower.leaves(plan):
            follower, graphs = None, None if adapted else self.graphs_alone
        curious = plan.slots_R[self._table.curious_S[plan.slots_R]]
        if len(curious):  # what a graph leaves is no more than tokens want
            return self._told(follower, plan, curious.tolist())
        left = None if graphs is None else graphs.run(plan)
        return left or self._launch(follower, plan)

    def _told(self, follower: Follower | None, plan: Plan, slots: Sequence[int]) -> Pass:
        """A step of which requests in these slots want to know more."""
        experts = any(self._table.admit(slot).params.return_routed_experts for slot in slots)
        with telling(self._rank.model, experts):
            left = self._launch(follower, plan)
        return replace(left, routed_TLK=routed(self._rank.model)) if experts else left

    def _launch(self, follower: Follower | None, plan: Plan) -> Pass:
        """A step kernel by kernel, of its own size."""
        num_spans = int((plan.counts_R[plan.num_steady :] > 1).sum())
        limits = RowLimits(decodes=plan.num_rows - num_spans, spans=num_spans)
        runs = plan.part(Runs)
        given = None if runs is None else self._upload(runs, plan)
        return self._compute(follower, frame.exact(plan, self._table), plan.num_tokens, limits, given, spans_of(plan))

    def _upload(self, runs: Runs, plan: Plan) -> Shared:
        members = shared.members(runs, plan)
        size = shared.Size(shared.num_tiles(members, self.tile), plan.num_tokens, self.tile)
        return shared.shared(upload([shared.words(runs, members, size)], self._rank.device.place)[0], size)

    def _compute(
        self,
        follower: Follower | None,
        frame: Frame,
        num_tokens: int,
        limits: RowLimits,
        runs: Shared | None,
        spans: Spans | None = None,
    ) -> Pass:
        """The whole of a step that no host needs to know more about; may be captured."""
        batch, heads = self.batcher.make(frame, num_tokens, limits=limits, shared=runs, spans=spans)
        for backend in self._rank.planned:
            backend.plan(batch)
        model = self._rank.model
        hidden_TD, taken = model.states(batch, () if follower is None else follower.taps)
        if follower is not None:
            follower.follow(batch, hidden_TD, taken)
        if not (frame.num_heads and model.decoder.stage.ends):
            return Pass(frame, heads, hidden_TD, None, None)
        if self.headless:
            drawn_N = torch.zeros_like(heads.draws_N)  # means nothing; whoever asked for a vector ends with it
            self.batcher.settle(frame, heads, drawn_N, Kind.DRAWN)
            return Pass(frame, heads, hidden_TD, None, drawn_N)
        logits_NV = self._rank.logits(hidden_TD.index_select(0, heads.last_N), heads.last_N, raw=True)
        drawn_N = torch.empty_like(heads.draws_N)
        draw(logits_NV, self._table.settings_SK, heads.draws_N, heads.ends_N, drawn_N)
        self.batcher.settle(frame, heads, drawn_N, Kind.DRAWN)
        return Pass(frame, heads, hidden_TD, logits_NV, drawn_N)

    def settle(self, left: Pass, drawn_N: Tensor) -> None:
        """Write to the table what was drawn at a step's heads elsewhere."""
        for kind in (Kind.DRAWN, Kind.SPECIAL):
            self.batcher.settle(left.frame, left.heads, drawn_N, kind)

    def compute_for_graph(
        self,
        follower: Follower | None,
        frame: Frame,
        num_tokens: int,
        limits: RowLimits,
        runs: Shared | None,
        *,
        adapted: bool = False,
    ) -> Pass:
        """The same, with adapters or without any; what outlives the launch is small, or lies in memory that all graphs share."""
        self._bank.open(adapted)
        left = self._compute(follower, frame, num_tokens, limits, runs)
        assert left.logits_NV is not None and self._logits_NV is not None
        logits_NV = self._logits_NV[: frame.num_heads]
        logits_NV.copy_(left.logits_NV)
        return Pass(frame, left.heads, None, logits_NV, left.drawn_N)
