"""What the host decides for one step (Plan) and what comes back (Outcome).

Both are values: made once, never changed. Integers travel as numpy arrays so that a step costs the same few numpy
calls for four rows and for four thousand. Suffix legend: R rows, A changes of a page table, C page copies.

A row feeds the span [start, start + count) of one slot's tokens. A prompt chunk, one decode token and the resumption
after preemption are the same row with other numbers. Rows come in two parts:

    slots = [ steady rows, count 1, each yields one token | spans, any count, in any order ]
              0 .............................. num_steady   num_steady ............... R

`steady` is the same array object from step to step for as long as no row joins or leaves, so a runner may keep what
it derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from sapwood.base.sampling import SamplingParams

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bits = NDArray[np.int32]
"""Masks: bit v % 32 of word v // 32 of a row tells whether it may yield token v."""


@dataclass(frozen=True, slots=True, eq=False)
class Admit:
    """A request takes a slot. Everything the device has to know of it, once.

    `tokens` are all known tokens (prompt, then outputs of an earlier stay); the first `fed` of them are in the KV
    cache already, in the pages that the same plan's `pages` name. `prompt_len` of them are the prompt. `limit` is the
    most tokens the slot will ever hold, `min_len` the length before which `stop_ids` are impossible.
    """

    slot: int
    tokens: Ints
    fed: int
    prompt_len: int
    limit: int
    min_len: int
    seed: int
    stop_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Tokens that stand at `start` and behind it in a slot, though no step has drawn them all."""

    slot: int
    start: int
    tokens: Ints


@dataclass(frozen=True, slots=True, eq=False)
class PageChange:
    """Entries of one KV group's page table: table[slots[i], indices[i]] = pages[i]."""

    slots_A: Ints
    indices_A: Ints
    pages_A: Ints


@dataclass(frozen=True, slots=True, eq=False)
class PageCopy:
    """Whole pages of one KV group to copy before the step's forward: pool[targets[i]] = pool[sources[i]]."""

    sources_C: Ints
    targets_C: Ints


RUN_LEVELS = 4
"""Most runs of shared pages that one slot is a member of."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of pages that several steady rows share, so that attention may read each once for all of them.

    Run u is positions [lows_U[u], highs_U[u]), multiples of the page size; its members, two at least, are the slots
    `slots_M[offsets_U1[u] : offsets_U1[u + 1]]`, which have the same pages there in every KV group without a window.
    The runs of one slot, at most RUN_LEVELS, cover [0, x) without gap or overlap, x at most where its row starts.
    """

    lows_U: Ints
    highs_U: Ints
    offsets_U1: Ints
    slots_M: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One step. `pages` and `copies` have one entry per KV group.

    `owners_R` is the tenancy number of each row's slot; a slot that has changed hands since then has another, and its
    tokens are dropped at commit. `yields_R` tells which rows sample a token at the end of their span. Where a span
    starts, `starts_R` decides (a prompt may move on without computing what another request has computed since); where a
    steady row starts, the device does, and `starts_R` is the host's upper bound. `runs` are those of the steady rows, the
    same object for as long as they are the same. `masked` are the yielding rows, ascending, whose tokens a grammar
    restricts: the same object while the steady rows are, None where there are none. `known` are tokens that the host
    came to know by other means than the device; they are in their places before the forward.
    """

    number: int
    steady: Ints
    slots_R: Ints
    starts_R: Ints
    counts_R: Ints
    yields_R: Bools
    owners_R: Longs
    admits: tuple[Admit, ...]
    pages: tuple[PageChange, ...]
    copies: tuple[PageCopy, ...]
    runs: Runs | None = None
    masked: Longs | None = None
    known: tuple[Known, ...] = ()

    @property
    def num_steady(self) -> int:
        return len(self.steady)

    @property
    def num_rows(self) -> int:
        return len(self.slots_R)

    @property
    def num_tokens(self) -> int:
        return int(self.counts_R.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Ruling:
    """What a row's grammar says to its new token.

    `forced` are the tokens that follow in any case, and are known with it. `done`: nothing may follow these. With an
    `error` the request ends instead.
    """

    forced: tuple[int, ...] = ()
    done: bool = False
    error: str = ""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the token that stands there, its rank (1 is likeliest), the likeliest ones."""

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a step yielded. `tokens_R[i]` counts only where the plan's `yields_R[i]`.

    `logprobs` maps a row to its new token's, `prompt_logprobs` a row to those of the prompt tokens that the row's span
    predicts: positions start + 1 .. start + count, cut at the prompt's end. `errors` maps a row to what went wrong in
    it alone (NaN logits, say); the request ends with that text.
    """

    tokens_R: Ints
    logprobs: dict[int, TokenLogprobs]
    prompt_logprobs: dict[int, list[TokenLogprobs]]
    errors: dict[int, str]
