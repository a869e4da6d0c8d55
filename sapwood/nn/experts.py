"""Experts: their weights, and the feed-forward that sends each token through a few.

Suffix legend: T tokens, X experts, I inputs and O outputs of a product, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sapwood.arch import experts as parts
from sapwood.arch.parts import Place
from sapwood.arch.shard import Piece
from sapwood.kernels import LayerNorm, RmsNorm, Routed
from sapwood.kernels.experts import Several, Stacked, select
from sapwood.kernels.planes import StackedPlanes
from sapwood.nn.make import Site, make
from sapwood.quant import stacked
from sapwood.quant.base import Leaf
from sapwood.quant.formats.base import Quantised
from sapwood.quant.kinds.base import Kind
from sapwood.quant.source import Source, plain


class Stack(Leaf):
    """weight_XOI and, where the part has one, bias_XO."""

    refills = True

    def __init__(self, part: parts.Stack, site: Site) -> None:
        super().__init__()
        shape = (part.count, part.linear.out, part.linear.inp)
        weight_XOI = torch.empty(shape, device=site.how.device, dtype=site.how.dtype)
        self.weight = nn.Parameter(weight_XOI, requires_grad=False)
        bias_XO = torch.empty(shape[:2], device=site.how.device, dtype=site.how.dtype) if part.linear.bias else None
        self.bias = None if bias_XO is None else nn.Parameter(bias_XO, requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.get_parameter(piece.param)[piece.target].copy_(plain(piece, source))


class CodedStack(stacked.Stacked[Kind]):
    """Quantised weights. Where a device chooses the experts, they are laid out for its kernels together, or, if those cannot
    read them, widened; elsewhere only the weights of those that are chosen are ever widened."""

    def __init__(self, part: parts.Stack, site: Site, method: Quantised) -> None:
        how, one = site.how, Place(site.path, site.prefix, part.linear)
        super().__init__([method.create(one, how.device, how.dtype, how.kernels) for _ in range(part.count)])
        self._shape = (part.count, part.linear.out, part.linear.inp)
        self._dtype, self._on_device = how.dtype, how.kernels.routed is not None
        self._together: Tensor | StackedPlanes | None = None
        self._bias: Tensor | None = None

    @property
    def refills(self) -> bool:  # type: ignore[override]
        return False  # what each of them was made of is not kept

    def load(self, piece: Piece, source: Source) -> None:
        self._together = None  # made up until now
        super().load(piece, source)

    def finish(self) -> None:
        super().finish()
        if not self._on_device:
            return
        planes = [kind.planes for kind in self.experts if kind.planes is not None]
        if len(planes) == len(self.experts):
            self._together = StackedPlanes.of(planes)
        else:
            self._together = torch.stack([kind.dequantised().to(self._dtype) for kind in self.experts])
        biases = [kind.bias for kind in self.experts]
        some = next((bias for bias in biases if bias is not None), None)
        if some is not None:
            self._bias = torch.stack([torch.zeros_like(some) if bias is None else bias for bias in biases])
        for kind in self.experts:
            kind.empty()

    @property
    def weight(self) -> Stacked:
        """All of them, as products take them."""
        if self._on_device and self._together is None:
            self._make_up()
        return self._together if self._together is not None else Several(self._shape, self.experts)

    @property
    def bias(self) -> Tensor | None:
        """That of all, where they are together."""
        return self._bias

    def _make_up(self) -> None:
        """Room such as weights will have, before they are there."""
        first = self.experts[0]
        first.randomize(torch.Generator(first.device))
        first.finish()
        planes = first.planes
        self._together = (
            torch.zeros(self._shape, device=first.device, dtype=self._dtype)
            if planes is None
            else StackedPlanes.blank(planes, len(self.experts))
        )
        if first.bias is not None:
            self._bias = first.bias.expand(len(self.experts), -1).contiguous()
        first.empty()


def _stack(part: parts.Stack, site: Site) -> Stack | CodedStack:
    method = site.how.method(Place(site.path, site.prefix, part))
    return CodedStack(part, site, method) if isinstance(method, Quantised) else Stack(part, site)


class Offsets(Leaf):
    """weight_X, float32."""

    refills = True

    def __init__(self, part: parts.Offsets, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(part.count, device=site.how.device), requires_grad=False)

    def load(self, piece: Piece, source: Source) -> None:
        self.weight.copy_(plain(piece, source).flatten())

    def randomize(self, random: torch.Generator) -> None:
        self.weight.zero_()


class Gauged(nn.Module):
    """In the place of a router's Linear."""

    def __init__(self, part: parts.Gauged, site: Site) -> None:
        super().__init__()
        self.linear, self.norm = site.make("linear", part.linear), site.make("norm", part.norm)
        self.factor, self._scale = site.make("factor", part.factor), part.scale

    def behind(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm | LayerNorm | None
    ) -> tuple[Tensor, Tensor]:
        """As `Weights.behind`, behind a norm of its own."""
        normed_TE, sum_TE = self.norm.join(x_TE, residual_TE)
        return self.linear(self.factor(normed_TE) * self._scale), sum_TE


class Experts(nn.Module):
    def __init__(self, part: parts.Experts, site: Site) -> None:
        super().__init__()
        self.router = site.make("router", part.router)
        self.gate_up = site.make("gate_up", part.gate_up)
        self.down = site.make("down", part.down)
        self.offsets = site.make("offsets", part.offsets)
        self.shared = site.make("shared", part.shared)
        self.shared_gate = site.make("shared_gate", part.shared_gate)
        self._part, self._kernels = part, site.how.kernels
        self.tells = False
        self.told_TK: Tensor | None = None  # whom the last step's tokens have chosen, if it `tells`
        self.counts_X: Tensor | None = None  # tokens that have chosen each expert, where a host chooses

    @property
    def top(self) -> int:
        """How many experts a token chooses."""
        return self._part.selection.top

    @property
    def _routed(self) -> Routed:
        """What is there now: weights are laid out when they are loaded."""
        return Routed(
            selection=self._part.selection,
            activation=self._part.activation,
            gate_up_XOI=self.gate_up.weight,
            down_XOI=self.down.weight,
            gate_up_bias_XO=self.gate_up.bias,
            down_bias_XO=self.down.bias,
            offsets_X=None if self.offsets is None else self.offsets.weight,
            weighs_input=self._part.weighs_input,
            first=self._part.gate_up.first,
            counts_X=self.counts_X,
        )

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm | LayerNorm | None
    ) -> tuple[Tensor, Tensor]:
        logits_TX, sum_TE = self.router.behind(x_TE, residual_TE, norm)
        if self.counts_X is None and self._kernels.routed is None:
            self.counts_X = torch.zeros(logits_TX.shape[1], dtype=torch.int64, device=logits_TX.device)
        if self.tells:
            offsets_X = None if self.offsets is None else self.offsets.weight
            self.told_TK = select(logits_TX, self._part.selection, offsets_X)[0].int()
        y_TE = self._kernels.experts(sum_TE, norm, logits_TX, self._routed)
        if self.shared is not None:
            shared_TE, _ = self.shared(sum_TE, None, norm)
            if self.shared_gate is not None:
                shared_TE = shared_TE * self.shared_gate.behind(sum_TE, None, norm)[0].sigmoid()
            y_TE = y_TE + shared_TE
        return y_TE, sum_TE


def chosen(model: nn.Module) -> NDArray[np.int64]:
    """How many tokens have chosen each expert of each layer that has some, [layers, experts]; none where that is not counted."""
    counts = [one.counts_X for one in model.modules() if isinstance(one, Experts) and one.counts_X is not None]
    if not counts or len({len(one) for one in counts}) > 1:
        return np.zeros((0, 0), np.int64)
    found: NDArray[np.int64] = torch.stack(counts).numpy()
    return found


def num_routed(model: object) -> int:
    """How many experts of all layers a token chooses, where that can be told, else 0."""
    return sum(one.top for one in _experts(model)) if len({one.top for one in _experts(model)}) == 1 else 0


@contextmanager
def telling(model: object, wanted: bool) -> Iterator[None]:
    """Have layers keep whom tokens choose, if that is `wanted`."""
    some = _experts(model) if wanted else []
    for one in some:
        one.tells = True
    try:
        yield
    finally:
        for one in some:
            one.tells = False


def routed(model: object) -> Tensor:
    """int32 [T, layers, K]: whom the tokens of the last step that was told of have chosen."""
    told = [one.told_TK for one in _experts(model)]
    for one in _experts(model):
        one.told_TK = None
    return torch.stack([told_TK for told_TK in told if told_TK is not None], dim=1)


def _experts(model: object) -> list[Experts]:
    return [one for one in model.modules() if isinstance(one, Experts)] if isinstance(model, nn.Module) else []


make.register(parts.Stack, _stack)
make.register(parts.Offsets, Offsets)
make.register(parts.Gauged, Gauged)
make.register(parts.Experts, Experts)
