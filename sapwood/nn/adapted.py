"""Linears that adapters change, whatever stores their own weights, and the memory of what they change.

A Linear's method is wrapped (`Bank.around`), so no module knows of adapters. In a step where no row has one, a wrapped Linear does what
it would do alone; else its own product is computed on normed inputs, and what the rows' adapters add is added before any gate.

Suffix legend: T tokens, R rows, I inputs, O outputs, S adapter slots, Q slots of requests, G groups of outputs, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.arch.adapters import EMBEDDING, HEAD, adaptable, groups_of, head_of
from sapwood.arch.parts import Decoder, Linear, Place, StoredTensor
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch, rows_of
from sapwood.base.abilities import Ability
from sapwood.base.plan import Ints, Rows
from sapwood.base.ragged import spread
from sapwood.device import abilities_of
from sapwood.kernels import Activation, Kernels, LayerNorm, RmsNorm
from sapwood.kernels.adapters import Lanes, Matrices, Segment, Sorted
from sapwood.nn.adapted_rows import AdaptedRows, Change
from sapwood.nn.make import Build, Looked, as_looked_up
from sapwood.parallel import ALONE, Mesh
from sapwood.quant.base import Choice, Method, Weights
from sapwood.quant.source import Source

_CHUNK, _ELEMENTS = 512, 1 << 24  # columns of weights, and weights, that are looked at together at most


class AdaptedWeights(Weights):
    """`base`, and what the adapters in `matrices` change in its product. `mesh` are the ranks that have a part of its columns each."""

    def __init__(self, base: Weights, matrices: Matrices, lanes: Lanes, kernels: Kernels, mesh: Mesh = ALONE) -> None:
        super().__init__(kernels)
        self.base, self.matrices = base, matrices
        self._lanes, self._mesh = lanes, mesh
        self._squares_O: Tensor | None = None  # the lengths of its rows, once somebody wants them

    # -- its own weights ------------------------------------------------------------------------------------------

    def load(self, piece: Piece, source: Source) -> None:
        self.base.load(piece, source)

    def randomize(self, random: torch.Generator) -> None:
        self.base.randomize(random)

    def finish(self) -> None:
        self.base.finish()

    # -- products -------------------------------------------------------------------------------------------------

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = self.base(x_TI)
        if self._lanes.open:
            self._kernels.adapt(y_TO, x_TI, self.matrices, self._lanes)
        return y_TO

    def normed(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        if self._lanes.open:
            return super().normed(x_TI, residual_TI, norm, activation)
        return self.base.normed(x_TI, residual_TI, norm, activation)

    def behind(
        self, x_TI: Tensor, residual_TI: Tensor | None, norm: RmsNorm | LayerNorm | None, gate: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        if self._lanes.open:
            return super().behind(x_TI, residual_TI, norm, gate)
        return self.base.behind(x_TI, residual_TI, norm, gate)

    def rounds(self, num_tokens: int) -> bool:
        return not self._lanes.open and self.base.rounds(num_tokens)

    def gated(self, x_T2I: Tensor, gate: Activation) -> Tensor:
        return super().gated(x_T2I, gate) if self._lanes.open else self.base.gated(x_T2I, gate)

    # -- adapters -------------------------------------------------------------------------------------------------

    def put(self, slot: int, change: Change | None) -> None:
        """Have the slot change this much, or nothing."""
        made = self.matrices
        made.a_SGRI[slot].zero_()
        made.b_SOR[slot].zero_()
        made.factors_SO[slot].zero_()
        rank = 0 if change is None else change.a_GRI.shape[1]
        made.note(slot, rank, scaled=change is not None and change.magnitudes_O is not None)
        if change is None:
            return
        made.a_SGRI[slot, :, :rank].copy_(change.a_GRI, non_blocking=True)
        made.b_SOR[slot, :, :rank].copy_(change.b_OR, non_blocking=True)
        if change.magnitudes_O is not None:
            factors_O = self._factors(slot, change.magnitudes_O.to(made.factors_SO.device))
            made.b_SOR[slot] *= factors_O[:, None]
            made.factors_SO[slot] = factors_O - 1

    def _factors(self, slot: int, magnitudes_O: Tensor) -> Tensor:
        """float32: what the rows of W + B A are to be multiplied by in order to have these lengths.

        |W + B A|² = |W|² + 2 <W, B A> + |B A|², row by row; and W A^T is the Linear's own product of A's rows, however W is stored. Where ranks
        have columns each, they add up.
        """
        made = self.matrices
        squares_O, b_OR = self._squares().clone(), made.b_SOR[slot].float()
        for group, (first, behind) in enumerate(made.bounds):
            a_RI, own_OR = made.a_SGRI[slot, group], b_OR[first:behind]
            met_RO = (self.base(a_RI).float() - made.offset_O)[:, first:behind]
            gram_RR = a_RI.float() @ a_RI.float().T
            squares_O[first:behind] += 2 * (own_OR * met_RO.T).sum(1) + ((own_OR @ gram_RR) * own_OR).sum(1)
        lengths_O = self._mesh.sum(squares_O[None])[0].clamp_min(0).sqrt()
        return torch.where(magnitudes_O.isnan(), 1.0, magnitudes_O / lengths_O)

    def _squares(self) -> Tensor:
        """float32: the squares of the lengths of W's rows, which are its products with the identity."""
        if self._squares_O is None:
            inp, like = self.matrices.a_SGRI.shape[-1], self.matrices.a_SGRI
            nothing_1I = like.new_zeros(1, inp)
            self.matrices.offset_O.copy_(self.base(nothing_1I)[0])
            self._squares_O = torch.zeros_like(self.matrices.offset_O)
            chunk = max(1, min(_CHUNK, _ELEMENTS // len(self._squares_O)))
            for first in range(0, inp, chunk):
                count = min(chunk, inp - first)
                some_CI = like.new_zeros(count, inp)
                some_CI[:, first : first + count].fill_diagonal_(1)
                self._squares_O += (self.base(some_CI).float() - self.matrices.offset_O).square().sum(0)
        return self._squares_O


class _Tied(Weights):
    """The product of a head that is the embedding, which stays where it is."""

    def __init__(self, project: Callable[[Tensor], Tensor], kernels: Kernels) -> None:
        super().__init__(kernels)
        self._project = project

    def forward(self, x_TI: Tensor) -> Tensor:
        return self._project(x_TI)


class Bank:
    """The adapter slots of a model on one device, and who of a step has which.

    `num_slots` adapters of up to `rank` ranks, for the Linears of `decoder`, which is a rank's portion on a `mesh`, and for its `ends`;
    `num_requests` slots of requests and that of nobody.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_slots: int,
        rank: int,
        num_requests: int,
        device: torch.device,
        mesh: Mesh = ALONE,
        ends: Collection[str] = (),
    ) -> None:
        self.num_slots, self.rank, self.decoder, self.ends = num_slots, rank, decoder, ends
        self.linears: dict[str, AdaptedWeights] = {}
        self._rows: AdaptedRows | None = None
        self._lanes, self._head_lanes = Lanes(), Lanes()
        self._adaptable = {place.path for place in adaptable(decoder, ends)}
        self._mesh = mesh
        abilities = abilities_of(device)
        self._on_host, self._pinned = Ability.HOST in abilities, Ability.PINNED in abilities
        self._has_Q: Ints = np.full(num_requests + 1, -1, np.int32)  # what the host knows of `_has`
        self._has = torch.from_numpy(self._has_Q).to(device)
        self._has_T = self._has  # of a step's tokens, once one was planned

    def around(self, choice: Choice) -> Choice:
        """The same methods, with room for adapters where there may be some."""
        return lambda place: self._around(choice(place), place)

    def _around(self, method: Method, place: Place) -> Method:
        return _Adapted(method, self) if place.path in self._adaptable - {EMBEDDING} else method

    def adapted(
        self, place: Place, base: Weights, dtype: torch.dtype, device: torch.device, kernels: Kernels
    ) -> Weights:
        """What stands for `base` at a place."""
        part = place.leaf
        assert isinstance(part, Linear)
        sizes = self.num_slots, self.rank, part.inp, groups_of(part)
        matrices = Matrices.empty(*sizes, device, dtype, outputs_last=self._on_host)
        lanes = self._head_lanes if place.path == HEAD else self._lanes
        made = AdaptedWeights(base, matrices, lanes, kernels, self._mesh if self._summed(place.path, part) else ALONE)
        self.linears[place.path] = made
        return made

    def _summed(self, path: str, part: Linear) -> bool:
        """Whether each rank has some of its columns."""
        if part.split != "in":
            return False
        _, index, half, *_ = path.split(".")
        return half in self.decoder.blocks[int(index)].parted

    def tied(self, project: Callable[[Tensor], Tensor], how: Build) -> Callable[[Tensor], Tensor]:
        """What stands for the product of a head that is the embedding, as `Build.tied`."""
        place = head_of(self.decoder)
        if place is None or place.path not in self._adaptable:
            return project
        return self.adapted(place, _Tied(project, how.kernels), how.dtype, how.device, how.kernels)

    def looked(self, how: Build) -> Looked:
        """What tokens' vectors go through, as `Build.looked`."""
        if EMBEDDING not in self._adaptable:
            return as_looked_up(how)
        mesh = self._mesh if EMBEDDING in self.decoder.parted else ALONE
        sizes = {"num_slots": self.num_slots, "rank": self.rank}
        self._rows = rows = AdaptedRows(self.decoder.embed, **sizes, device=how.device, dtype=how.dtype, mesh=mesh)

        def change(x_TD: Tensor, ids_T: Tensor) -> Tensor:
            if not self._lanes.open:
                return x_TD
            has_T = self._lanes.of_tokens
            return rows.add(x_TD, ids_T, self._has_T if has_T is None else torch.from_numpy(has_T))

        return change

    # -- what plans say -------------------------------------------------------------------------------------------

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        """Have an adapter in a slot, by the paths of the Linears that it changes."""
        for path, linear in self.linears.items():
            linear.put(slot, changes.get(path))
        if self._rows is not None:
            self._rows.put(slot, changes.get(EMBEDDING))

    def give(self, slots: Ints, adapters: Ints) -> None:
        """From now on these slots of requests have those slots of adapters, -1 for none."""
        self._has_Q[slots] = adapters
        if not self._on_host:
            told_Q = torch.from_numpy(self._has_Q.copy())
            self._has.copy_(told_Q.pin_memory() if self._pinned else told_Q, non_blocking=True)

    def lend(self, lent: bool) -> None:
        """Have all requests the adapter of the first slot, whatever it holds, or none: what a step takes at most is measured with it."""
        slots = np.arange(len(self._has_Q) - 1, dtype=np.int32)
        self.give(slots, np.full(len(slots), 0 if lent else -1, np.int32))

    # -- steps ----------------------------------------------------------------------------------------------------

    def begin(self, rows: Rows) -> bool:
        """A step of these rows follows: whether some of them have an adapter. Else no Linear looks for any."""
        self.open(bool((self._has_Q[rows.slots_R] >= 0).any()))
        return self._lanes.open

    def open(self, adapted: bool) -> None:
        """What is computed next is for rows some of which have an adapter, or for none."""
        self._lanes.open = adapted

    def plan(self, batch: Batch) -> None:
        """Find once for all Linears which tokens have which adapter. May be captured where tokens are sorted."""
        if not self._lanes.open:
            return
        if self._on_host:
            rows_T, _ = spread(batch.counts_R.numpy())
            has_T = self._has_Q[batch.slots_R.numpy()][rows_T]
            self._lanes.of_tokens, self._lanes.segments = has_T, _segments(has_T)
        else:
            self._has_T = self._has_of(batch)
            self._lanes.sorted = self._sorted(self._has_T)

    @contextmanager
    def heads(self, tokens_N: Tensor | slice) -> Iterator[None]:
        """Within, the head is asked for these tokens of the step that was planned last. May be captured where tokens are sorted."""
        lanes = self._head_lanes
        if not self._lanes.open or HEAD not in self._adaptable:
            yield
            return
        if (has_T := self._lanes.of_tokens) is not None:
            has_N = has_T[tokens_N if isinstance(tokens_N, slice) else tokens_N.numpy()]
            # One by one, so that a token's sums do not depend on who else is there.
            lanes.segments = [Segment(int(slot), slice(i, i + 1)) for i, slot in enumerate(has_N) if slot >= 0]
        else:
            lanes.sorted = self._sorted(self._has_T[tokens_N])
        lanes.open = True
        try:
            yield
        finally:
            lanes.open = False

    @property
    def of_tokens(self) -> Ints | None:
        """The slot of each token's adapter in the step that was planned, -1 for none; None if nobody has one."""
        return self._lanes.of_tokens if self._lanes.open else None

    def _has_of(self, batch: Batch) -> Tensor:
        """The slot of each token's adapter, -1 for none, without asking the device anything."""
        rows_T = rows_of(batch.offsets_R1, len(batch.ids_T))
        has_R = self._has[batch.slots_R.long()]
        return torch.where(rows_T < len(has_R), has_R[rows_T.clamp_max(len(has_R) - 1)], -1)

    def _sorted(self, has_T: Tensor) -> Sorted:
        """Likewise: sizes follow from the number of tokens alone."""
        device = has_T.device
        last_T = torch.where(has_T < 0, self.num_slots, has_T)
        sorted_T, order_T = last_T.sort(stable=True)
        slots_S = torch.arange(self.num_slots, device=device, dtype=sorted_T.dtype)
        starts_S = torch.searchsorted(sorted_T, slots_S)
        ends_S = torch.searchsorted(sorted_T, slots_S, right=True)
        return Sorted(order_T.int(), starts_S.int(), ends_S.int())


def _segments(has_T: Ints) -> Sequence[Segment]:
    found = []
    for slot in np.unique(has_T[has_T >= 0]).tolist():
        tokens = np.flatnonzero(has_T == slot)
        first, behind = int(tokens[0]), int(tokens[-1]) + 1
        run = behind - first == len(tokens)
        found.append(Segment(slot, slice(first, behind) if run else torch.from_numpy(tokens)))
    return found


class NoBank:
    """Stands for a bank where there are no adapters."""

    def lend(self, lent: bool) -> None:
        pass

    def begin(self, rows: Rows) -> bool:
        return False

    def open(self, adapted: bool) -> None:
        pass

    @contextmanager
    def heads(self, tokens_N: Tensor | slice) -> Iterator[None]:
        yield


@dataclass(frozen=True, eq=False)
class _Adapted:
    """A Method with room for adapters."""

    inner: Method
    bank: Bank

    @property
    def shown(self) -> str:
        return self.inner.shown

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        return self.inner.tensors(place)

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Weights:
        return self.bank.adapted(place, self.inner.create(place, device, dtype, kernels), dtype, device, kernels)
