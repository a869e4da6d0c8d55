"""Products of a step's tokens with the matrices of their adapters, all adapters in two launches of static size.

Tokens come sorted by the slot of their adapter (`Sorted`). `_shrink` multiplies tiles of one slot's tokens with its A, a part of the
columns each, so that few tokens keep the device busy too; `_expand` adds these parts up, multiplies them with B, and adds that to
y. A tile beyond a slot's tokens ends at once, so grids depend on the sizes of the batch alone, and may be captured (after Punica,
Chen et al., 2023).

Suffix legend: T tokens, I inputs, O outputs, S adapter slots, G groups of outputs with an A of their own, R ranks that there is room
for, K parts of the inputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.adapters import Lanes, Matrices
from sapwood.kernels.triton.jit import jit

_DEPTH = 128  # inputs of a tile
_PART = 512  # inputs that one program multiplies
_MOST_PARTS = 16
_OUTPUTS = 128  # of a tile
_FEW, _TILES = 256, (16, 64)  # tokens of a step up to which its tiles are small


@jit
def _shrink(
    x_TI,
    stride,
    a_SGRI,
    order_T,
    starts_S,
    ends_S,
    ranks_S,
    inner_KTGR,
    num_tokens,
    INP: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    PART: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Grid (tiles of T, S, K * G). What it leaves lies in the order of the sorted tokens."""
    slot = tl.program_id(1)
    part, group = tl.program_id(2) // G, tl.program_id(2) % G
    first, end = tl.load(starts_S + slot) + tl.program_id(0) * TOKENS, tl.load(ends_S + slot)
    rank = tl.load(ranks_S + slot)
    if (first < end) & (rank > 0):
        place = first + tl.arange(0, TOKENS)
        there = place < end
        token = tl.load(order_T + place, mask=there, other=0).to(tl.int64)
        r = tl.arange(0, RANKS)
        a_RI = a_SGRI + ((slot.to(tl.int64) * G + group) * R + r[:, None]) * INP
        acc = tl.zeros([TOKENS, RANKS], tl.float32)
        for begin in range(0, PART, DEPTH):
            i = part * PART + begin + tl.arange(0, DEPTH)
            inside = i < INP
            x = tl.load(x_TI + token[:, None] * stride + i[None, :], mask=there[:, None] & inside[None, :], other=0.0)
            a = tl.load(a_RI + i[None, :], mask=(r < rank)[:, None] & inside[None, :], other=0.0)
            acc += tl.dot(x, tl.trans(a), input_precision="ieee")
        to = inner_KTGR + ((part.to(tl.int64) * num_tokens + place[:, None]) * G + group) * R + r[None, :]
        tl.store(to, acc, mask=there[:, None] & (r < R)[None, :])


@jit
def _expand(
    y_TO,
    stride,
    b_SOR,
    factors_SO,
    offset_O,
    bounds_G1,
    order_T,
    starts_S,
    ends_S,
    ranks_S,
    scaled_S,
    inner_KTGR,
    num_tokens,
    OUT: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Grid (tiles of T, S, tiles of O)."""
    slot = tl.program_id(1)
    first, end = tl.load(starts_S + slot) + tl.program_id(0) * TOKENS, tl.load(ends_S + slot)
    rank = tl.load(ranks_S + slot)
    if (first < end) & (rank > 0):
        place = first + tl.arange(0, TOKENS)
        there = place < end
        token = tl.load(order_T + place, mask=there, other=0).to(tl.int64)
        r = tl.arange(0, RANKS)
        low = tl.program_id(2) * OUTPUTS
        o = low + tl.arange(0, OUTPUTS)
        acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
        for group in range(G):
            begin, behind = tl.load(bounds_G1 + group), tl.load(bounds_G1 + group + 1)
            if (begin < low + OUTPUTS) & (behind > low):
                inner = tl.zeros([TOKENS, RANKS], tl.float32)
                for part in range(K):
                    of = inner_KTGR + ((part * num_tokens + place[:, None]).to(tl.int64) * G + group) * R + r[None, :]
                    inner += tl.load(of, mask=there[:, None] & (r < rank)[None, :], other=0.0)
                mine = (o >= begin) & (o < behind)
                b_OR = b_SOR + (slot.to(tl.int64) * OUT + o[:, None]) * R + r[None, :]
                b = tl.load(b_OR, mask=mine[:, None] & (r < rank)[None, :], other=0.0)
                acc += tl.dot(inner.to(b.dtype), tl.trans(b), input_precision="ieee")
        to = y_TO + token[:, None] * stride + o[None, :]
        inside = there[:, None] & (o < OUT)[None, :]
        y = tl.load(to, mask=inside, other=0.0).to(tl.float32)
        if tl.load(scaled_S + slot) != 0:
            factor = tl.load(factors_SO + slot.to(tl.int64) * OUT + o, mask=o < OUT, other=0.0)
            offset = tl.load(offset_O + o, mask=o < OUT, other=0.0)
            y += (y - offset[None, :]) * factor[None, :]
        tl.store(to, (y + acc).to(y_TO.dtype.element_ty), mask=inside)


def add(y_TO: Tensor, x_TI: Tensor, matrices: Matrices, lanes: Lanes) -> None:
    """`sapwood.kernels.adapters.add`, of tokens that are `sorted`; sums are in float32."""
    assert lanes.sorted is not None and x_TI.stride(-1) == 1 and y_TO.stride(-1) == 1
    num_tokens, (num_slots, num_groups, room, inp) = len(x_TI), matrices.a_SGRI.shape
    out, ranks = y_TO.shape[1], max(16, triton.next_power_of_2(room))
    part = max(_PART, -(-inp // _MOST_PARTS // _DEPTH) * _DEPTH)
    parts, tokens = triton.cdiv(inp, part), _TILES[num_tokens > _FEW]
    inner_KTGR = torch.empty(parts, num_tokens, num_groups, room, device=x_TI.device)
    order_T, starts_S, ends_S = lanes.sorted
    tiles = triton.cdiv(num_tokens, tokens)
    _shrink[(tiles, num_slots, parts * num_groups)](
        x_TI, x_TI.stride(0), matrices.a_SGRI, order_T, starts_S, ends_S, matrices.ranks_S, inner_KTGR, num_tokens,
        INP=inp, G=num_groups, R=room, PART=part, TOKENS=tokens, RANKS=ranks, DEPTH=_DEPTH, num_warps=4,
    )  # fmt: skip
    _expand[(tiles, num_slots, triton.cdiv(out, _OUTPUTS))](
        y_TO, y_TO.stride(0), matrices.b_SOR, matrices.factors_SO, matrices.offset_O, matrices.bounds_G1, order_T, starts_S,
        ends_S, matrices.ranks_S, matrices.scaled_S, inner_KTGR, num_tokens,
        OUT=out, G=num_groups, R=room, K=parts, TOKENS=tokens, RANKS=ranks, OUTPUTS=_OUTPUTS, num_warps=4,
    )  # fmt: skip
