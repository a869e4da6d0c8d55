"""Recurrences on a GPU: a program takes a row's tokens one after the other, and holds its part of the state in registers.

A state's columns do not look at one another, so a long row is cut into many programs by its heads and their columns, each of one
warp, whose sums over keys need no other: a token takes about a tenth of a microsecond, whatever else runs beside it. States lie as
`sapwood.attention.states` says: that behind position p in cell p % CELLS of p's page.

Suffix legend: T tokens of the step, R rows, S slots, P pages of a slot, C channels, W width of a convolution, H heads, G groups of
heads with the same keys and queries, K size of a key, V size of a value.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton.jit import jit

WIDEST = 4
"""Of a convolution: a state that lies where the one before lay is written after all that need that one."""

_CHANNELS = 256  # of a program
_COLUMNS = 8  # of a state that a program holds: 32 bytes of each key's row
_HEADS = 64  # that a program holds where each has one column


class Rows(NamedTuple):
    """A step's rows, and where one group keeps their states: `rows_T` is the row of each token, or that of any other for padding."""

    rows_T: Tensor
    offsets_R1: Tensor
    starts_R: Tensor
    counts_R: Tensor
    heads_R: Tensor | None
    slots_R: Tensor
    table_SP: Tensor
    page_size: int
    cells: int


@jit
def _cell(table, stride, slot, position, PAGE: tl.constexpr, CELLS: tl.constexpr):
    page = tl.load(table + slot.to(tl.int64) * stride + position // PAGE)
    return page.to(tl.int64) * CELLS + position % CELLS


@jit
def _num_kept(heads, row, count, SEVERAL: tl.constexpr):
    if SEVERAL:
        return tl.minimum(tl.maximum(tl.load(heads + row), 1), count)
    else:
        return tl.minimum(count, 1)


@jit
def _convolve(
    x, x_stride, y, weight, weight_stride, bias, kept, rows, offsets, starts, counts, slots, table, table_stride,
    C: tl.constexpr, W: tl.constexpr, PAGE: tl.constexpr, CELLS: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (T, tiles of C)."""
    token = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = c < C
    row = tl.load(rows + token)
    index, start = token - tl.load(offsets + row), tl.load(starts + row)
    acc = tl.zeros((BLOCK,), tl.float32)
    if index < tl.load(counts + row):
        past = kept
        if start > 0:
            past += _cell(table, table_stride, tl.load(slots + row), start - 1, PAGE, CELLS) * C * (W - 1)
        if BIAS:
            acc += tl.load(bias + c, mask=there, other=0.0)
        for w in tl.static_range(W):
            at = index - (W - 1) + w
            own = tl.load(
                x + (token - (W - 1) + w).to(tl.int64) * x_stride + c, mask=there & (at >= 0), other=0.0
            ).to(tl.float32)  # fmt: skip
            if w < W - 1:
                behind = there & (at < 0) & (start > 0)
                own += tl.load(past + c * (W - 1) + at + (W - 1), mask=behind, other=0.0)
            acc += own * tl.load(weight + c * weight_stride + w, mask=there, other=0.0)
    tl.store(y + token.to(tl.int64) * C + c, acc.to(y.dtype.element_ty), mask=there)


@jit
def _keep_inputs(
    x, x_stride, kept, offsets, starts, counts, heads, slots, table, table_stride,
    C: tl.constexpr, W: tl.constexpr, PAGE: tl.constexpr, CELLS: tl.constexpr, SEVERAL: tl.constexpr,
    PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (R, tiles of C). Old states first: a newer one may lie where the one before the row lies."""
    row = tl.program_id(0)
    count, start, slot = tl.load(counts + row), tl.load(starts + row), tl.load(slots + row)
    first = tl.load(offsets + row).to(tl.int64)
    c, j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None], tl.arange(0, PAD)[None, :]
    there = (c < C) & (j < W - 1)
    past = kept
    if (count > 0) & (start > 0):
        past += _cell(table, table_stride, slot, start - 1, PAGE, CELLS) * C * (W - 1)
    for index in range(count - _num_kept(heads, row, count, SEVERAL), count):
        at = index - (W - 2) + j
        own = tl.load(x + (first + at) * x_stride + c, mask=there & (at >= 0), other=0.0).to(tl.float32)
        old = tl.load(past + c * (W - 1) + at + (W - 1), mask=there & (at < 0) & (start > 0), other=0.0)
        to = kept + _cell(table, table_stride, slot, start + index, PAGE, CELLS) * C * (W - 1)
        tl.debug_barrier()  # other threads may still read what is overwritten
        tl.store(to + c * (W - 1) + j, own + old, mask=there)
        tl.debug_barrier()


@jit
def _scan(
    q, q_stride, k, k_stride, v, v_stride, decay, beta, y, kept, offsets, starts, counts, heads, slots, table, table_stride,
    H: tl.constexpr, REPEAT: tl.constexpr, K: tl.constexpr, V: tl.constexpr, PAGE: tl.constexpr, CELLS: tl.constexpr,
    BETA: tl.constexpr, SEVERAL: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of V, H, R). The next token is read while this one is computed."""
    row, head = tl.program_id(2), tl.program_id(1)
    count = tl.load(counts + row)
    if count > 0:
        start, slot, first = tl.load(starts + row), tl.load(slots + row), tl.load(offsets + row).to(tl.int64)
        key, column = tl.arange(0, PAD), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        keys, columns = key < K, column < V
        of_state, tile = (head * K + key[:, None]) * V + column[None, :], keys[:, None] & columns[None, :]
        state = tl.zeros((PAD, BLOCK), tl.float32)
        if start > 0:
            state += tl.load(
                kept + _cell(table, table_stride, slot, start - 1, PAGE, CELLS) * (H * K * V) + of_state,
                mask=tile,
                other=0.0,
            )
        q_of = q + first * q_stride + (head // REPEAT) * K + key
        k_of = k + first * k_stride + (head // REPEAT) * K + key
        v_of = v + first * v_stride + head * V + column
        y_of = y + (first * H + head) * V + column
        decay_of = decay + first * H + head
        beta_of = beta + first * H + head
        q_next, k_next = tl.load(q_of, mask=keys, other=0.0), tl.load(k_of, mask=keys, other=0.0)
        v_next, decay_next = tl.load(v_of, mask=columns, other=0.0), tl.load(decay_of)
        beta_next = tl.load(beta_of)
        oldest = count - _num_kept(heads, row, count, SEVERAL)
        for index in range(count):
            q_K, k_K, v_V = q_next.to(tl.float32), k_next.to(tl.float32), v_next.to(tl.float32)
            fades, part = tl.exp(decay_next), beta_next
            more = index + 1 < count
            q_next = tl.load(q_of + (index + 1) * q_stride, mask=keys & more, other=0.0)
            k_next = tl.load(k_of + (index + 1) * k_stride, mask=keys & more, other=0.0)
            v_next = tl.load(v_of + (index + 1) * v_stride, mask=columns & more, other=0.0)
            decay_next = tl.load(decay_of + (index + 1) * H, mask=more, other=0.0)
            beta_next = tl.load(beta_of + (index + 1) * H, mask=more, other=0.0)
            state *= fades
            if BETA:
                v_V = part * (v_V - tl.sum(state * k_K[:, None], axis=0))
            state += k_K[:, None] * v_V[None, :]
            tl.store(y_of + index * H * V, tl.sum(state * q_K[:, None], axis=0).to(y.dtype.element_ty), mask=columns)
            if index >= oldest:
                to = _cell(table, table_stride, slot, start + index, PAGE, CELLS) * (H * K * V)
                tl.store(kept + to + of_state, state, mask=tile)


@jit
def _scan_keyed(
    q, q_stride, k, k_stride, v, v_stride, decay, y, kept, offsets, starts, counts, heads, slots, table, table_stride,
    H: tl.constexpr, K: tl.constexpr, PAGE: tl.constexpr, CELLS: tl.constexpr, SEVERAL: tl.constexpr,
    PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of H, R). Every number of a state fades by itself, and a head has one column."""
    row = tl.program_id(1)
    count = tl.load(counts + row)
    if count > 0:
        start, slot, first = tl.load(starts + row), tl.load(slots + row), tl.load(offsets + row).to(tl.int64)
        head, key = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PAD)
        there, keys = head < H, key < K
        of_state, tile = head[:, None] * K + key[None, :], there[:, None] & keys[None, :]
        state = tl.zeros((BLOCK, PAD), tl.float32)
        if start > 0:
            state += tl.load(
                kept + _cell(table, table_stride, slot, start - 1, PAGE, CELLS) * (H * K) + of_state,
                mask=tile,
                other=0.0,
            )
        q_of = q + first * q_stride + key
        k_of = k + first * k_stride + key
        v_of = v + first * v_stride + head
        y_of = y + first * H + head
        decay_of = decay + first * (H * K) + of_state
        oldest = count - _num_kept(heads, row, count, SEVERAL)
        for index in range(count):
            q_K = tl.load(q_of + index * q_stride, mask=keys, other=0.0).to(tl.float32)
            k_K = tl.load(k_of + index * k_stride, mask=keys, other=0.0).to(tl.float32)
            v_H = tl.load(v_of + index * v_stride, mask=there, other=0.0).to(tl.float32)
            fades = tl.exp(tl.load(decay_of + index * (H * K), mask=tile, other=0.0))
            state = state * fades + v_H[:, None] * k_K[None, :]
            tl.store(y_of + index * H, tl.sum(state * q_K[None, :], axis=1).to(y.dtype.element_ty), mask=there)
            if index >= oldest:
                to = _cell(table, table_stride, slot, start + index, PAGE, CELLS) * (H * K)
                tl.store(kept + to + of_state, state, mask=tile)


def conv(rows: Rows, kept: Tensor, x_TC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
    """`StateBackend.conv` of one layer, whose states are `kept` [cells, C, W - 1]; sums are in float32."""
    assert x_TC.stride(1) == 1 and weight_CW.stride(1) == 1
    (num_tokens, channels), width = x_TC.shape, weight_CW.shape[1]
    y_TC = torch.empty((num_tokens, channels), dtype=x_TC.dtype, device=x_TC.device)
    same = {"C": channels, "W": width, "PAGE": rows.page_size, "CELLS": rows.cells, "num_warps": 4}
    where = rows.slots_R, rows.table_SP, rows.table_SP.stride(0)
    _convolve[(num_tokens, triton.cdiv(channels, _CHANNELS))](
        x_TC, x_TC.stride(0), y_TC, weight_CW, weight_CW.stride(0), bias_C, kept,
        rows.rows_T, rows.offsets_R1, rows.starts_R, rows.counts_R, *where,
        BIAS=bias_C is not None, BLOCK=_CHANNELS, **same,
    )  # fmt: skip
    _keep_inputs[(len(rows.counts_R), triton.cdiv(channels, _CHANNELS))](
        x_TC, x_TC.stride(0), kept, rows.offsets_R1, rows.starts_R, rows.counts_R, rows.heads_R, *where,
        SEVERAL=rows.heads_R is not None, PAD=triton.next_power_of_2(width - 1), BLOCK=_CHANNELS, **same,
    )  # fmt: skip
    return y_TC


def scan(
    rows: Rows,
    kept: Tensor,
    q_TGK: Tensor,
    k_TGK: Tensor,
    v_THV: Tensor,
    decay_TH: Tensor,
    beta_TH: Tensor | None,
) -> Tensor:
    """`StateBackend.scan` of one layer, whose states are `kept` [cells, H, K, V]; sums are in float32."""
    (num_tokens, heads, size), (groups, key) = v_THV.shape, q_TGK.shape[1:]
    assert all(some[:1].is_contiguous() for some in (q_TGK, k_TGK, v_THV)), "of a token"
    y_THV = torch.empty((num_tokens, heads, size), dtype=v_THV.dtype, device=v_THV.device)
    decay_TH = decay_TH.contiguous()
    inputs = q_TGK, q_TGK.stride(0), k_TGK, k_TGK.stride(0), v_THV, v_THV.stride(0), decay_TH
    where = (
        rows.offsets_R1, rows.starts_R, rows.counts_R, rows.heads_R, rows.slots_R, rows.table_SP, rows.table_SP.stride(0)
    )  # fmt: skip
    same = {
        "H": heads, "K": key, "PAGE": rows.page_size, "CELLS": rows.cells, "SEVERAL": rows.heads_R is not None,
        "PAD": triton.next_power_of_2(key),
    }  # fmt: skip
    if decay_TH.dim() == 3:
        assert groups == size == 1 and beta_TH is None, "as Mamba's first scan has it"
        _scan_keyed[(triton.cdiv(heads, _HEADS), len(rows.counts_R))](
            *inputs, y_THV, kept, *where, BLOCK=min(_HEADS, triton.next_power_of_2(heads)), num_warps=4, **same
        )
        return y_THV
    told = decay_TH if beta_TH is None else beta_TH.contiguous()
    columns = min(_COLUMNS, triton.next_power_of_2(size))
    _scan[(triton.cdiv(size, columns), heads, len(rows.counts_R))](
        *inputs, told, y_THV, kept, *where,
        REPEAT=heads // groups, V=size, BETA=beta_TH is not None, BLOCK=columns, num_warps=1, **same,
    )  # fmt: skip
    return y_THV
