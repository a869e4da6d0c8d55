"""The operations of mixers that carry a state."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import torch
import torch.nn.functional as F

from sapwood.arch.multiplied import Multiplied
from sapwood.arch.parts import Linear
from sapwood.arch.recurrent import Conv, DeltaNet, Mamba2, ShortConv
from sapwood.kernels.cpu import library as cpu
from sapwood.nn.stack import HEADS, ROOM, Operation, Spot, missing, operations

_CONV, _SCAN = ROOM, ROOM + 1
"""Buffers: what the convolution yields, and the scan's own room."""

_CHUNK, _MOST_TAPS = 32, 8  # of `stack.h` and `states.h`


@missing.register
def _(part: ShortConv | Mamba2 | DeltaNet) -> str | None:
    if isinstance(part.inp, Multiplied):
        return "Multiplied"
    return f"convolutions over more than {_MOST_TAPS} tokens" if part.conv.width > _MOST_TAPS else None


def _taps(part: Conv, spot: Spot) -> cpu.Taps:
    assert spot.place is not None
    leaf, filling = spot.weights.convs[f"{spot.path}.conv"], -part.channels % _CHUNK
    return cpu.Taps(
        weights=spot.hold(F.pad(leaf.weight_CW.T, (0, filling))),
        bias=None if leaf.bias is None else spot.hold(F.pad(leaf.bias, (0, filling))),
        channels=part.channels,
        width=part.width,
        group=spot.place.group,
        layer=spot.place.layer,
    )


@operations.register
def _short_conv(part: ShortConv, spot: Spot) -> Iterator[Operation]:
    yield Operation("project", (spot.product("inp"), HEADS, False))
    yield Operation("short_conv", (_taps(part.conv, spot), HEADS))
    yield spot.yields("out")


@operations.register
def _mamba(part: Mamba2, spot: Spot) -> Iterator[Operation]:
    """`inp` yields the gate, then what goes into the convolution: values, keys, queries; then the steps."""
    inner, shared = part.num_heads * part.head_dim, part.num_groups * part.state_size
    how = _scan(part, spot)
    how.skip = spot.hold(spot.weights.vectors[f"{spot.path}.d"])
    how.norm = spot.weights.norm(f"{spot.path}.norm", part.norm)
    how.parts, how.gates_first = part.num_groups, not part.gated_last
    how.low, how.high = part.limits
    how.value, how.key, how.query = 0, inner, inner + shared
    how.gate, how.step, how.beta = 0, inner + part.conv.channels, -1
    yield from _convolved(part, spot, how, first=inner)


@operations.register
def _delta(part: DeltaNet, spot: Spot) -> Iterator[Operation]:
    """`inp` yields what goes into the convolution: queries, keys, values; then the gate, how much is replaced, and the steps."""
    inner, shared = part.num_heads * part.head_dim, part.num_groups * part.state_size
    weight_V = spot.weights.norms[f"{spot.path}.norm"].weight
    how = _scan(part, spot)
    how.norm = cpu.Norm(spot.hold(weight_V.repeat(part.num_heads)), None, part.norm.eps, 0)
    how.parts, how.high = part.num_heads, inf
    how.query, how.key, how.value = 0, shared, 2 * shared
    how.gate = part.conv.channels
    how.beta = how.gate + inner
    how.step = how.beta + part.num_heads
    yield from _convolved(part, spot, how, first=0)


def _scan(part: Mamba2 | DeltaNet, spot: Spot) -> cpu.Scan:
    assert spot.place is not None
    bias_H, rates_H = (spot.weights.vectors[f"{spot.path}.{name}"] for name in ("dt_bias", "a_log"))
    return cpu.Scan(
        bias=spot.hold(bias_H),
        rates=spot.hold(-torch.exp(rates_H)),
        heads=part.num_heads,
        groups=part.num_groups,
        key_size=part.state_size,
        value_size=part.head_dim,
        group=spot.place.group,
        layer=spot.place.layer,
    )


def _convolved(part: Mamba2 | DeltaNet, spot: Spot, how: cpu.Scan, *, first: int) -> Iterator[Operation]:
    """With the convolution's inputs in columns from `first` on."""
    assert isinstance(part.inp, Linear), "what is multiplied is missing"
    wide, channels = part.inp.out, part.conv.channels
    yield Operation("project", (spot.product("inp"), HEADS, False))
    yield Operation("conv_columns", (_taps(part.conv, spot), HEADS, wide, first, _CONV))
    yield Operation("scan", (how, HEADS, wide, _CONV, channels, _SCAN))
    yield spot.yields("out")
