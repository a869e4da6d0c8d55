"""Choosing the tokens that are not drawn at once, and what a step yields in the end.

Suffix legend: T tokens of the step, R rows, N heads, M masked ones, W words of a mask, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.base.plan import Bits, Ints, LatePart, Masked, Masks, Outcome, Plan, TokenLogprobs
from sapwood.base.ragged import firsts, rows_of
from sapwood.device import Mark
from sapwood.runner.align import Aligner
from sapwood.runner.assemble import Rank
from sapwood.runner.frame import REJECTED, Kind
from sapwood.runner.insight import Seen, Teller, by_row
from sapwood.runner.pool import Pooled, Pooler
from sapwood.runner.step import Pass, Step
from sapwood.runner.table import Table
from sapwood.runner.transfer import download, upload
from sapwood.runner.yields import Yields, find_special
from sapwood.sampling.fast import draw
from sapwood.sampling.logprobs import Logprobs, as_rows, logprobs
from sapwood.sampling.masks import restricted
from sapwood.sampling.sampler import sample

_NOT_FINITE = "the model computed logits that are not finite for this request"
_SCORED_ELEMENTS = 1 << 25  # most logits that exist at once when a prompt is scored


@dataclass(frozen=True, eq=False)
class Scored:
    """Some prompt tokens of one row, what was found of them, and how many alternatives and named tokens are asked for."""

    row: int
    tokens: Ints
    found: Logprobs
    wanted: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Told:
    """Drafts of the device's own on their way to the host, there once `done` has passed."""

    tokens_N: Tensor
    done: Mark | None

    def read(self) -> Ints:
        if self.done is not None:
            self.done.synchronize()
        found: Ints = self.tokens_N.numpy()
        return found


@dataclass(eq=False)
class Work:
    """A step on its way. `forward` fills the first part, `sample` the rest, in host memory once `done` has passed.

    `tokens_N` are the draws at the heads: -1 without finite logits, REJECTED behind drafts that were wrong.
    """

    plan: Plan
    left: Pass
    told: Told | None = None

    special: Yields | None = None
    tokens_N: Tensor | None = None
    logprobs: Logprobs | None = None
    scored: list[Scored] = field(default_factory=list)
    pooled: Sequence[Pooled] = ()
    seen: Sequence[Seen] = ()
    done: Mark | None = None


class Chooser:
    """Chooses and reads. `allocate_masks` gives memory for masks, which is taken to be filled when `choose` comes."""

    def __init__(self, rank: Rank, table: Table, step: Step, *, vocab_size: int) -> None:
        self._rank, self._table, self._step, self._vocab_size = rank, table, step, vocab_size
        self._special: tuple[int, Yields | None] | None = None  # of plain steps, by the version of their rows
        self._masks_MW: Tensor | None = None
        self._pooler, self._teller = Pooler(rank, table), Teller(rank, table, vocab_size=vocab_size)
        self._aligner = Aligner(rank.pool, table)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        """Pinned memory for the masks of so many heads, new each time: the last may still be on its way to the device."""
        width = width or -(-self._vocab_size // 32)
        pinned = self._rank.device.can(Ability.PINNED)
        self._masks_MW = torch.empty(num_rows, width, dtype=torch.int32, pin_memory=pinned)
        return self._masks_MW.numpy()

    def watch(self, plan: Plan) -> None:
        """Before a step: have it noted what is wanted of it beside its states."""
        self._aligner.watch(plan)

    def choose(self, work: Work, late: Sequence[LatePart]) -> None:
        """Choose the tokens that were not drawn at once, and start the way of all to the host."""
        plan, left = work.plan, work.left
        masks = next((part for part in late if isinstance(part, Masks)), None)
        assert (masks is None) == (plan.part(Masked) is None), (
            "masks for the heads that are masked, and for these alone"
        )
        work.scored = self._score(work)
        work.pooled = [*self._pooler.pool(plan, left.hidden_TD), *self._aligner.take(plan)]
        work.seen = self._teller.look(plan, left)
        if not plan.num_heads:
            return
        assert left.drawn_N is not None
        work.special = special = self._find(plan)
        if special is not None:
            if special.only_masked:
                self._choose_masked(work, special)
            else:
                self._choose_special(work, special, masked=masks is not None)
            self._step.batcher.settle(left.frame, left.heads, left.drawn_N, Kind.SPECIAL)
        work.tokens_N = download(left.drawn_N[: plan.num_heads])

    def _find(self, plan: Plan) -> Yields | None:
        if not self._table.special_S[plan.slots_R].any():
            return None
        if not plan.plain:
            return find_special(plan, self._table)
        if self._special is None or self._special[0] != plan.version:
            self._special = plan.version, find_special(plan, self._table)
        return self._special[1]

    def _masks(self) -> Tensor:
        """The masks on the device, in the order of the masked heads, which is theirs among the special ones too."""
        assert self._masks_MW is not None
        # Beside the forward that is still running: behind it, every step would wait for them.
        return self._rank.device.aside(self._masks_MW)

    def _choose_masked(self, work: Work, special: Yields) -> None:
        """Heads of which nothing is edited but what their grammars forbid: as they would have been drawn at once."""
        left, table = work.left, self._table
        assert left.drawn_N is not None and left.logits_NV is not None
        logits_MV = restricted(left.logits_NV, special.places_N, self._masks())
        ends_M = left.heads.ends_N.index_select(0, special.places_N)
        drawn_M = torch.empty_like(ends_M)
        draw(logits_MV, table.settings_SK, special.recipe.slots_N.int(), ends_M, drawn_M)
        left.drawn_N[special.places_N] = drawn_M

    def _choose_special(self, work: Work, special: Yields, *, masked: bool) -> None:
        left, tokens_SL = work.left, self._table.tokens_SL
        assert left.drawn_N is not None and left.logits_NV is not None
        positions_N = left.heads.ends_N.index_select(0, special.places_N).long()
        longest = int((work.plan.starts_R + work.plan.counts_R).max())
        logits_NV = left.logits_NV.index_select(0, special.places_N).float()
        bits_MW = self._masks() if masked else None
        sampled = sample(logits_NV, special.recipe, positions_N, tokens_SL[:, :longest], bits_MW)
        left.drawn_N[special.places_N] = sampled.tokens_N.int().masked_fill(~sampled.sound_N, -1)
        work.logprobs = None if sampled.logprobs is None else _download(sampled.logprobs)

    def _score(self, work: Work) -> list[Scored]:
        """Log probabilities of the prompt tokens that spans predict, for those who ask; a bounded part at a time."""
        plan = work.plan
        scored: list[Scored] = []
        if plan.num_rows == plan.num_steady:
            return scored
        at_once = max(1, _SCORED_ELEMENTS // self._vocab_size)
        first_R = firsts(plan.counts_R)
        spans = np.arange(plan.num_steady, plan.num_rows)
        for row in spans[self._table.scored_S[plan.slots_R[spans]]].tolist():
            admit = self._table.admit(plan.slots_R[row])
            num_top, named = admit.params.prompt_logprobs or 0, admit.params.logprob_token_ids
            named_J = upload([np.array(named, np.int64)], self._table.device)[0] if named else None
            start, first = int(plan.starts_R[row]), int(first_R[row])
            length = min(int(plan.counts_R[row]), admit.prompt_len - 1 - start)
            for done in range(0, length, at_once):
                end = min(done + at_once, length)
                targets = slice(start + done + 1, start + end + 1)
                assert work.left.hidden_TD is not None, "a scored prompt is never part of a graph"
                tokens = slice(first + done, first + end)
                logits = self._rank.logits(work.left.hidden_TD[tokens], tokens)
                known = self._table.tokens_SL[admit.slot, targets].long()
                found = _download(
                    logprobs(
                        logits,
                        known,
                        num_top=num_top,
                        named_NJ=None if named_J is None else named_J.expand(len(known), -1),
                    )
                )
                scored.append(Scored(row, admit.tokens[targets], found, (num_top, len(named))))
        return scored


class Onlooker(Chooser):
    """Of a stage behind which there is another: that one chooses."""

    def choose(self, work: Work, late: Sequence[LatePart]) -> None:
        pass


def read(work: Work) -> Outcome:
    """What a step yielded, once it is done."""
    plan = work.plan
    drawn: Ints = np.zeros(0, np.int32) if work.tokens_N is None else work.tokens_N.numpy()
    kept = drawn != REJECTED
    if kept.all():
        tokens, yielded = drawn, plan.heads_R
    else:
        rows_N = rows_of(plan.heads_R)
        tokens, yielded = drawn[kept], np.bincount(rows_N[kept], minlength=plan.num_rows).astype(np.int32)
    errors: dict[int, str] = {}
    if len(tokens) and tokens.min() < 0:
        rows = rows_of(yielded)[tokens < 0]
        errors = dict.fromkeys(rows.tolist(), _NOT_FINITE)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    for part in work.scored:
        found = as_rows(part.tokens.tolist(), part.found, [part.wanted] * len(part.tokens))
        prompt_logprobs.setdefault(part.row, []).extend(found)
    vectors = {row: vector for part in work.pooled for row, vector in part.read().items()}
    errors |= {row: _NOT_FINITE for row, vector in vectors.items() if not np.isfinite(vector).all()}
    return Outcome(tokens, yielded, _logprobs(work, drawn), prompt_logprobs, errors, vectors, by_row(work.seen))


def _logprobs(work: Work, drawn: Ints) -> dict[int, list[TokenLogprobs]]:
    """Of the rows that ask, those of the tokens that they yield."""
    found: dict[int, list[TokenLogprobs]] = {}
    if work.logprobs is None:
        return found
    assert work.special is not None
    asking = work.special.places[work.special.logprobs]
    rows_N = rows_of(work.plan.heads_R)
    entries = as_rows(drawn[asking].tolist(), work.logprobs, work.special.wanted)
    for head, entry in zip(asking.tolist(), entries, strict=True):
        if drawn[head] != REJECTED:
            found.setdefault(int(rows_N[head]), []).append(entry)
    return found


def _download(found: Logprobs) -> Logprobs:
    return Logprobs(*map(download, found.tensors()))
