"""What the host decides for one step (Plan) and what comes back (Outcome).

Both are values: made once, never changed. Integers travel as numpy arrays so that a step costs the same few numpy
calls for four rows and for four thousand. Suffix legend: R rows, N heads (in a plan) or tokens (in an outcome), A changes
of a page table, C page copies, M masked heads, W words of a mask.

A row feeds the span [start, start + count) of one slot's tokens. A prompt chunk, one decode token, a token with drafts
behind it and the resumption after preemption are the same row with other numbers. Rows come in two parts:

    slots = [ steady rows: all of their tokens are heads | spans, any count, in any order ]
              0 .............................. num_steady   num_steady ................. R

The last `heads` positions of a row's span want logits: none of a prompt chunk that goes on, one of a row that yields
a token, k + 1 of a row that feeds k drafts. At each of them a token is drawn, and what the row yields are those draws
up to and including the first that differs from the draft fed behind it. A choice depends on seed and position alone,
so these are the tokens that the row would have yielded one by one.

What else a step has to be told are *parts*: values, each of a type of its own, drafted by whoever has a stake in the
step. A part that cannot be made before the last step's tokens are known is *late*: it is filled between a step's
forward and its sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from sapwood.base.adapter import Adapter
from sapwood.base.insight import Insight
from sapwood.base.media import Media
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Task

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Bits = NDArray[np.int32]
"""Masks: bit v % 32 of word v // 32 of a row tells whether it may yield token v."""


@dataclass(frozen=True, slots=True, eq=False)
class Admit:
    """A request takes a slot. Everything the device has to know of it, once.

    `tokens` are all known tokens (prompt, then outputs of an earlier stay); the first `fed` of them are in the KV
    cache already, in the pages that the same plan's `Pages` name. `prompt_len` of them are the prompt. `limit` is the
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
    task: Task = GENERATE


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Tokens that stand at `start` and behind it in a slot."""

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


# -- parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Admissions:
    """Requests that take slots, one of each slot at most."""

    admits: tuple[Admit, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Tokens that the host came to know by other means than the device; they are in their places before the forward."""

    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Drafts:
    """Tokens that may turn out to follow in their slots. What a slot holds at positions that it has reached stays.

    As a part of a plan they are in their places before its forward; filled late, behind what its step yields.
    """

    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Propose:
    """Steady rows that feed `counts_P` drafts, by their slots, which the device itself drafts before the step's forward: a model
    there goes on from the token behind what is fed. If they are `told`, the host has to know them before the step is sampled, and the
    plan is late."""

    slots_P: Ints
    counts_P: Ints
    told: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """What changes in the page tables, per KV group."""

    changes: tuple[PageChange, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Pages to copy, per KV group."""

    copies: tuple[PageCopy, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Before the step's forward: `media` that an encoder reads, each into its entry of the pool of what it leaves (`kv.Fixed`), and
    slots that look at an entry from now on."""

    media: tuple[Media, ...]
    entries_E: Ints
    slots_A: Ints
    entries_A: Ints


RUN_LEVELS = 4
"""Most runs of shared pages that one slot is a member of."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of pages that several steady rows share, so that attention may read each once for all of them.

    Run u is positions [lows_U[u], highs_U[u]), multiples of the page size; its members, two at least, are the slots
    `slots_M[offsets_U1[u] : offsets_U1[u + 1]]`, which have the same pages there in every KV group without a window.
    The runs of one slot, at most RUN_LEVELS, cover [0, x) without gap or overlap, x at most where its row starts.
    While `version` is the same, so are they.
    """

    version: int
    lows_U: Ints
    highs_U: Ints
    offsets_U1: Ints
    slots_M: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """The heads whose tokens are restricted, by their places among all heads of the step, ascending. `Masks` follow."""

    heads_M: Longs


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Late: what each masked head may yield, int32 [M, W], in memory that the executor's `allocate_masks` gave last."""

    bits_MW: Bits


@dataclass(frozen=True, slots=True, eq=False)
class Encode:
    """Media that the device's encoder sees before the step's forward. What it makes of each goes to rows of the memory that there is for
    results, numbered from 1, one for each of its positions."""

    media: tuple[Media, ...]
    rows: tuple[Ints, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """Results of encoders that change their place before `Encode`, in this order: "keep" puts what lies in `rows` into the host's memory under
    a number, "bring" puts it back into `rows` and forgets it there, "drop" forgets it, and "clear" forgets all."""

    kinds: tuple[Literal["keep", "bring", "drop", "clear"], ...]
    numbers: tuple[int, ...]
    rows: tuple[Ints, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """Of a slot that a request takes: media may stand in its first `length` positions, none where that is 0. `turns_3P` is by how much
    each of these positions' three rotary ones is more, and `behind` the same of all that follow; None where they are the same."""

    slot: int
    length: int
    turns_3P: Ints | None
    behind: int


@dataclass(frozen=True, slots=True, eq=False)
class Embed:
    """Where results stand in place of tokens: the `tokens` of these stretches are rows of that memory. Seats come first."""

    seats: tuple[Seat, ...]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Adapters:
    """Adapters take slots of the device, which are told as they are `loads`: a slot, and what it holds from now on. Requests' slots
    `slots_A` have those of `adapters_A` from now on, -1 where they have none."""

    loads: tuple[tuple[int, Adapter], ...]
    slots_A: Ints
    adapters_A: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Slots whose tokens have other rotary positions than their places: the `tokens` of these stretches, which start at 0, are by how much
    they are more, and the last of them holds for all behind. A stretch of none ends that."""

    stretches: tuple[Stretch, ...]


Part = (
    Admissions
    | Known
    | Drafts
    | Propose
    | Pages
    | Copies
    | Inputs
    | Runs
    | Masked
    | Carry
    | Encode
    | Embed
    | Adapters
    | Gaps
)
LatePart = Masks | Drafts
P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one step.

    `version` belongs to the steady rows: while it is the same, so are they, in the same order, and whoever derived
    something from them may keep it. `owners_R` is the tenancy number of each row's slot; a slot that has changed hands
    since then, or whose row is no longer valid, has another, and its tokens are dropped when they land. Where a span
    starts, `starts_R` decides (a prompt may move on without computing what another request has computed since); where a
    steady row starts, the device does, and `starts_R` is the host's upper bound.
    """

    num_steady: int
    version: int
    slots_R: Ints
    starts_R: Ints
    counts_R: Ints
    heads_R: Ints
    owners_R: Longs

    @property
    def num_rows(self) -> int:
        return len(self.slots_R)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.counts_R.sum())

    @cached_property
    def num_heads(self) -> int:
        return int(self.heads_R.sum())

    @cached_property
    def drafted(self) -> bool:
        """Whether some row feeds drafts."""
        return len(self.heads_R) > 0 and int(self.heads_R.max()) > 1

    @property
    def steady(self) -> Ints:
        """The slots of the steady rows."""
        return self.slots_R[: self.num_steady]

    @cached_property
    def plain(self) -> bool:
        """Whether all rows are steady, with one token each: mostly what a step is."""
        return self.num_steady == len(self.slots_R) == self.num_tokens


_ROWS_HAVE = tuple(one.name for one in fields(Rows))


@dataclass(frozen=True, eq=False)
class Plan(Rows):
    """One step. `parts` has one of each type at most. A `late` plan is sampled when all steps before it have landed."""

    number: int
    parts: tuple[Part, ...] = ()
    late: bool = False

    @classmethod
    def of(cls, rows: Rows, *, number: int, parts: tuple[Part, ...], late: bool) -> Plan:
        return cls(**{name: getattr(rows, name) for name in _ROWS_HAVE}, number=number, parts=parts, late=late)

    def part(self, kind: type[P]) -> P | None:
        """The part of that type, if there is one."""
        for part in self.parts:
            if isinstance(part, kind):
                return part
        return None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the token that stands there, its rank (1 is likeliest), the likeliest ones, and
    those of the tokens that the request names, in its order."""

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]
    named_logprobs: list[float] = []


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a step yielded: `yielded_R` tokens of each row, one at least of each row with heads, row after row in `tokens_N`.

    `logprobs` maps a row to those of its tokens, `prompt_logprobs` a row to those of the prompt tokens that the row's span
    predicts: positions start + 1 .. start + count, cut at the prompt's end. `errors` maps a row to what went wrong in
    it alone (NaN logits, say); the request ends with that text. `vectors` maps a row to what it yields whose task wants a vector:
    its token means nothing. `insights` maps a row to what its request wants to know of each of the positions of its span, wrong drafts included.
    """

    tokens_N: Ints
    yielded_R: Ints
    logprobs: dict[int, list[TokenLogprobs]]
    prompt_logprobs: dict[int, list[TokenLogprobs]]
    errors: dict[int, str]
    vectors: dict[int, Floats] = field(default_factory=dict)
    insights: dict[int, dict[Insight, NDArray[Any]]] = field(default_factory=dict)
