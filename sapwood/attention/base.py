"""What attention backends share: the batch they read and the protocol they keep.

Suffix legend: T tokens of the step, R rows, Q queries of rows that only yield, S slots of the table, P pages per slot,
H query heads, K KV heads, X = H + 2K heads side by side, D head size, F half of its rotated dimensions, I tiles of shared
runs, M memberships, L = RUN_LEVELS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sapwood.attention.scaled import Factors
from sapwood.base.kv import Heads, KVGroup, KVKind, Latent
from sapwood.kernels import NormRope, plain

_TILE = 128
"""Queries x heads of a tile of a shared run: so many that keys and values are read seldom, and matrix units are fed."""
_LATENT_TILE = 64
"""The same of latents, whose sums take more room."""


class RowLimits(NamedTuple):
    """What a host knows of a batch's rows: at most so many of one token or of heads alone, and so many others."""

    decodes: int
    spans: int


@dataclass(frozen=True, slots=True)
class Spans:
    """The last `number` rows of a batch, from `first` on, which may have more than one token; `tokens` are theirs in all,
    `longest` those of one at most. `several` of them have more than one, and see `context` positions in the end."""

    first: int
    number: int
    tokens: int
    longest: int
    several: int
    context: int


@dataclass(frozen=True, eq=False)
class Shared:
    """Runs of positions that several queries share, cut into tiles of at most `tile` members.

    Device tensors, int32. Queries are the first tokens of the step: those of rows all of whose tokens are heads, mostly
    one each. Tile i is positions [lows_I, highs_I) of the slots_I-th page table and memberships [firsts_I, firsts_I +
    sizes_I); of size 0 it is padding. `tokens_M` is the query of each membership. A query's runs cover [0, privates_Q)
    once each; what is from there on is its row's own. `members_QL` are a query's memberships, -1 where it has fewer than
    RUN_LEVELS.
    """

    lows_I: Tensor
    highs_I: Tensor
    firsts_I: Tensor
    sizes_I: Tensor
    slots_I: Tensor
    tokens_M: Tensor
    privates_Q: Tensor
    members_QL: Tensor
    tile: int


def tile_members(groups: Sequence[KVGroup]) -> int:
    """Most members of a tile of a shared run, for a model with these groups: a power of two, 64 at most."""
    return min((1 << _members(group.kind).bit_length() - 1 for group in groups), default=64)


@singledispatch
def _members(kind: KVKind) -> int:
    """How many queries a kind's tile of a shared run may have, 1 to 64."""
    return 64


@_members.register
def _(kind: Heads) -> int:
    return min(64, max(1, _TILE >> (kind.num_heads // kind.num_kv_heads - 1).bit_length()))


@_members.register
def _(kind: Latent) -> int:
    return max(1, _LATENT_TILE // kind.tile_heads)


@dataclass(frozen=True, eq=False)
class Seen:
    """What stands among a step's tokens: the row of vectors_MW in place of each token's own vector, rows_T (int64), 0 for none; and
    turns_3T (int64), its three rotary positions, None where they are all its position. A row has further vectors behind the first, one for
    each of the decoder's first `levels` layers; row 0 is zeros. ends_T (int64) is the position behind a token's image, 0 where there is none,
    for layers that look ahead."""

    rows_T: Tensor
    vectors_MW: Tensor
    turns_3T: Tensor | None
    levels: int = 0
    ends_T: Tensor | None = None

    def among(self, x_TD: Tensor) -> Tensor:
        """The tokens' vectors, with those that stand in their places."""
        return torch.where((self.rows_T > 0)[:, None], self._of(0, x_TD.shape[1]), x_TD)

    def behind(self, layer: int, x_TD: Tensor) -> Tensor:
        """What a layer leaves of the tokens, with what it has for that layer added."""
        return x_TD if layer >= self.levels else x_TD + self._of(layer + 1, x_TD.shape[1])

    def _of(self, number: int, width: int) -> Tensor:
        return self.vectors_MW.narrow(1, number * width, width).index_select(0, self.rows_T)


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything that one forward reads. Tokens are flat: row r's are [offsets_R1[r], offsets_R1[r + 1]).

    Device tensors: `ids_T` and `positions_T` int64; `slots_R`, `starts_R` (first position of the span), `counts_R`
    int32; `offsets_R1` int32 with R + 1 entries; `tables_GSP` one int32 page table per KV group, addressed by slot;
    `cells_GT` one int64 vector per group, the flat KV cell (page * page_size + offset) of each token.

    All of them may be padded: rows beyond the step's have count 0, the slot of nobody and the last offset again; tokens
    beyond the step's belong to no row and have id, position and cell 0. `limits` are then those of the padded batch.
    `shared` are runs that a group with a window does not heed. `spans` is None where the host may not know them: inside a
    graph. `heads_R` (int32) is how many of a row's last tokens yield another, None where no row has several. `seconds_S` (int32)
    is where a second text begins in a slot, 0 where there is none; None where nobody asks. `seen` is None where no media stand.
    `rotary_T` (int64) are the positions by which tokens are turned, None where these are `positions_T`, their places.
    """

    ids_T: Tensor
    positions_T: Tensor
    slots_R: Tensor
    starts_R: Tensor
    counts_R: Tensor
    offsets_R1: Tensor
    tables_GSP: Sequence[Tensor]
    cells_GT: Sequence[Tensor]
    limits: RowLimits
    shared: Shared | None = None
    spans: Spans | None = None
    heads_R: Tensor | None = None
    seconds_S: Tensor | None = None
    seen: Seen | None = None
    rotary_T: Tensor | None = None

    @property
    def turned_T(self) -> Tensor:
        """The positions that the model is told of."""
        return self.positions_T if self.rotary_T is None else self.rotary_T


def rows_of(offsets_R1: Tensor, num_tokens: int) -> Tensor:
    """The row (int64) of each of a step's tokens, found without asking the device anything; R, which is none, for padding."""
    places_T = torch.arange(num_tokens, device=offsets_R1.device, dtype=torch.int32)
    return torch.searchsorted(offsets_R1[1:].contiguous(), places_T, right=True)


class Backend(Protocol):
    """What one KV group keeps, and what mixers compute with it: besides what stands here, a `run` that its kind defines.

    Order of calls: `allocate` once; then per step `plan` once and `run` once per layer. `run` writes what the step's
    tokens leave before anything reads it, so a row may see what another row of the same step computes. On CUDA neither
    of the two waits for the device, and both may be recorded in a graph.
    """

    name: str

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve the group there, or None. Kind and device are those of its row in `select`."""
        ...

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        """`index` is the group's place in Batch.tables_GSP; `dtype` that of the stored keys and values."""
        ...

    def allocate(self, num_pages: int) -> None:
        """Take the memory of `num_pages` pages. Page 0 is never given to a request: padding may write there."""
        ...

    def plan(self, batch: Batch) -> None:
        """Derive once per step what every layer's `run` needs."""
        ...

    def pools(self) -> Sequence[Tensor]:
        """Where pages lie, all that they hold: contiguous tensors of any dtype whose second axis counts pages."""
        ...


class HeadsBackend(Backend, Protocol):
    """A backend of groups that keep `Heads`: their keys and values, and attention over them."""

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        """Rotate queries and keys, write keys and values of the group's `layer`-th layer, attend causally.

        `heads_TXD` is [queries | keys | values] and may be overwritten; its last two axes are contiguous. Returns
        out_THD in its dtype. Position p sees the positions of its own slot from `oldest(p)` to p, by scores that are
        capped and fall with distance as the group's `Heads` say, beside the float32 `sinks_H`, which come if they say so.
        Tokens of no row come out as anything.
        """
        ...


@runtime_checkable
class Dividing(Protocol):
    """A backend that may divide keys and values by factors before it stores them."""

    @property
    def factors(self) -> Factors | None:
        """To be filled while no step runs; None where none are divided."""
        ...


def heads_of(group: KVGroup) -> Heads:
    """The group's kind, for backends that serve no other."""
    assert isinstance(group.kind, Heads), "chosen by kind"
    return group.kind


def window_told(kind: KVKind) -> int:
    """What kernels are told of who sees what: 0 for all, a window, or chunks as a negative number."""
    if not isinstance(kind, Heads) or kind.window is None:
        return 0
    return -kind.window if kind.chunked else kind.window


def slopes_of(heads: Heads, device: torch.device, *shape: int) -> Tensor | None:
    """The float32 slopes of the query heads, [H] or of another shape, if scores fall with distance."""
    if heads.slopes is None:
        return None
    return torch.tensor(heads.slopes, dtype=torch.float32, device=device).view(*(shape or (-1,)))


def bend(
    scores: Tensor, cap: float | None, slopes: Tensor | None, distance_NL: Tensor, relative: Tensor | None = None
) -> None:
    """Scores [..., N, L] capped in place, and less by slopes [..., 1, 1] times the distance between query and key, or more by what
    `relative` [..., P] has for it: for P - 1 and all beyond, then for ever smaller ones down to 0."""
    if cap is not None:
        scores.div_(cap).tanh_().mul_(cap)
    if slopes is not None:
        scores.sub_(slopes * distance_NL)
    if relative is not None:
        farthest = relative.shape[-1] - 1
        scores.add_(relative[..., farthest - distance_NL.clamp(0, farthest)])


def weights_of(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax of scores [..., N, L], of which sinks [..., 1, 1], that join it, have a share."""
    if sinks is None:
        return scores.softmax(dim=-1)
    joined = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
    return joined.softmax(dim=-1)[..., :-1]


def rotated(heads_TXD: Tensor, rope: NormRope, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THD, k_TKD, v_TKD) of the fused projection, queries and keys rotated."""
    num_qk = heads.num_heads + heads.num_kv_heads
    qk_TND, v_TKD = heads_TXD[:, :num_qk], heads_TXD[:, num_qk:]
    qk_TND = plain.placed(qk_TND, rope)
    return qk_TND[:, : heads.num_heads], qk_TND[:, heads.num_heads :], v_TKD
