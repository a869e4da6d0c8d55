"""Queries and keys turned, keys and values written to their cells: all that happens between projection and attention.

Suffix legend: T tokens, H query heads, K KV heads, N = H + K, X = N + K heads side by side, D head size, F half of the
rotated dimensions of a head.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import NormRope
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit

HEADS = 8
"""Heads of one program. A token of a small model is then still a few programs."""


@jit
def _turn(low, high, cos, sin, turned, dtype: tl.constexpr):
    """Rounded to the activations' dtype, so that a cell holds the same whatever else reads the turned keys."""
    new_low = tl.where(turned, low * cos - high * sin, low).to(dtype).to(tl.float32)
    new_high = tl.where(turned, high * cos + low * sin, high).to(dtype).to(tl.float32)
    return new_low, new_high


@jit
def _most(x, inside):
    """The largest magnitude of each head."""
    return tl.max(tl.where(inside, tl.abs(x.to(tl.float32)), 0.0), axis=1)[:, None]


@jit
def _rounded(x, inverse, stored: tl.constexpr):
    """What is stored with a scale: integers are the nearest."""
    x = x.to(tl.float32) * inverse
    if stored == tl.int8:
        x = tl.floor(x + 0.5)
    return x


@jit(do_not_specialize_on_alignment=["cells_T", "factors_2K"])
def _place(
    heads_TXD,
    token_stride,
    norm_ND,
    cos_TF,
    sin_TF,
    cells_T,
    keys,
    values,
    key_scales,
    value_scales,
    factors_2K,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    PAGE: tl.constexpr,
    NORM: tl.constexpr,
    CENTER: tl.constexpr,
    LATE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    KEEP: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    F_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK heads of one token. Grid (T, ceil(X / BLOCK)).

    A head is [low half | high half | rest], with INTERLEAVED low and high by turns; the rest is not turned. Keys and values
    go to their cells in the dtype that is stored, with scales by the largest of a head, which becomes MOST, or divided by the factors of their heads;
    queries are overwritten, and with KEEP keys as well.
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    f = tl.arange(0, F_PAD)[None, :]
    lows, highs = f, F + f
    if INTERLEAVED:
        lows, highs = 2 * f, 2 * f + 1
    inside = (n < H + 2 * K) & (f < F)
    turned = n < H + K
    if NORM:
        weight_low = tl.load(norm_ND + n * D + lows, mask=inside & turned, other=0.0)
        weight_high = tl.load(norm_ND + n * D + highs, mask=inside & turned, other=0.0)
    if PDL:
        pdl.join()
    cell = tl.load(cells_T + token)
    place = heads_TXD + token * token_stride + n * D
    dtype = heads_TXD.dtype.element_ty
    low = tl.load(place + lows, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(place + highs, mask=inside, other=0.0).to(tl.float32)
    if REST_PAD > 0:
        d = 2 * F + tl.arange(0, REST_PAD)[None, :]
        rest_inside = (n < H + 2 * K) & (d < D)
        rest = tl.load(place + d, mask=rest_inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_TF + token * F + f, mask=f < F, other=0.0)
    sin = tl.load(sin_TF + token * F + f, mask=f < F, other=0.0)
    if NORM and LATE:
        low, high = _turn(low, high, cos, sin, turned, dtype)
    if NORM:
        if CENTER:
            total = tl.sum(low + high, axis=1)
            if REST_PAD > 0:
                total += tl.sum(rest, axis=1)
            mean = (total / D)[:, None]
            low = tl.where(inside & turned, low - mean, low)
            high = tl.where(inside & turned, high - mean, high)
            if REST_PAD > 0:
                rest = tl.where(rest_inside & turned, rest - mean, rest)
        squares = tl.sum(low * low + high * high, axis=1)
        if REST_PAD > 0:
            squares += tl.sum(rest * rest, axis=1)
        factor = tl.rsqrt(squares / D + eps)[:, None]
        low = tl.where(turned, (low * factor * weight_low).to(dtype).to(tl.float32), low)
        high = tl.where(turned, (high * factor * weight_high).to(dtype).to(tl.float32), high)
        if REST_PAD > 0:
            weight_rest = tl.load(norm_ND + n * D + d, mask=rest_inside & turned, other=0.0)
            rest = tl.where(turned, (rest * factor * weight_rest).to(dtype).to(tl.float32), rest)
    if not NORM or not LATE:
        low, high = _turn(low, high, cos, sin, turned, dtype)
    new_low, new_high = low.to(dtype), high.to(dtype)

    kept = n < (H + K if KEEP else H)
    tl.store(place + lows, new_low, mask=inside & kept)
    tl.store(place + highs, new_high, mask=inside & kept)
    is_key, is_value = (n >= H) & turned, n >= H + K
    mark = (cell // PAGE) * (K * PAGE) + ((n - H) % K) * PAGE + cell % PAGE
    target = mark * D
    stored = keys.dtype.element_ty
    if REST_PAD > 0:
        new_rest = rest.to(dtype)
        if NORM:
            tl.store(place + d, new_rest, mask=rest_inside & kept)
    if key_scales is not None:
        most = tl.maximum(_most(new_low, inside), _most(new_high, inside))
        if REST_PAD > 0:
            most = tl.maximum(most, _most(new_rest, rest_inside))
        tl.store(key_scales + mark, most / MOST, mask=(n < H + 2 * K) & is_key)
        tl.store(value_scales + mark, most / MOST, mask=(n < H + 2 * K) & is_value)
        inverse = tl.where(most > 0, MOST / most, 0.0)
        new_low, new_high = _rounded(new_low, inverse, stored), _rounded(new_high, inverse, stored)
        if REST_PAD > 0:
            new_rest = _rounded(new_rest, inverse, stored)
    if factors_2K is not None:
        factor = tl.load(factors_2K + n - H, mask=(n >= H) & (n < H + 2 * K), other=1.0)
        new_low, new_high = new_low.to(tl.float32) / factor, new_high.to(tl.float32) / factor
        if REST_PAD > 0:
            new_rest = new_rest.to(tl.float32) / factor
    tl.store(keys + target + lows, new_low.to(stored), mask=inside & is_key)
    tl.store(keys + target + highs, new_high.to(stored), mask=inside & is_key)
    tl.store(values + target + lows, new_low.to(stored), mask=inside & is_value)
    tl.store(values + target + highs, new_high.to(stored), mask=inside & is_value)
    if REST_PAD > 0:
        tl.store(keys + target + d, new_rest.to(stored), mask=rest_inside & is_key)
        tl.store(values + target + d, new_rest.to(stored), mask=rest_inside & is_value)


def place(
    heads_TXD: Tensor,
    rope: NormRope,
    cells_T: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_heads: int,
    keep: bool,
    scales: tuple[Tensor, Tensor] | None = None,
    most: float = 0.0,
    factors_2K: Tensor | None = None,
) -> None:
    """Rotate the queries in place (with `keep` the keys as well), and write rotated keys and values to their cells.

    `keys` and `values` are one layer's [page, K, cell of the page, D] in any float dtype, contiguous; `cells_T` int64;
    the last two axes of `heads_TXD` [T, H + 2K, D] are contiguous. With `scales`, those of keys and of values, float32 [page, K,
    cell of the page], the largest of a head is stored as `most`, and `keys` and `values` may be int8 too. With
    `factors_2K` (float32, of keys, then of values, one for each head) what is stored is divided by them.
    """
    num_tokens, size, head_dim = heads_TXD.shape
    _, num_kv_heads, page_size, _ = keys.shape
    assert heads_TXD.stride(2) == 1 and heads_TXD.stride(1) == head_dim
    half = rope.cos_TF.shape[-1]
    rest = head_dim - 2 * half
    join = pdl.supported(heads_TXD.device)
    key_scales, value_scales = scales or (None, None)
    _place[(num_tokens, triton.cdiv(size, HEADS))](
        heads_TXD, heads_TXD.stride(0), rope.norm_ND, rope.cos_TF, rope.sin_TF, cells_T, keys, values,
        key_scales, value_scales, factors_2K, rope.eps,
        H=num_heads, K=num_kv_heads, D=head_dim, F=half, PAGE=page_size, NORM=rope.norm_ND is not None,
        CENTER=rope.center, LATE=rope.late, INTERLEAVED=rope.interleaved, KEEP=keep, MOST=most,
        BLOCK=HEADS, F_PAD=triton.next_power_of_2(half), REST_PAD=triton.next_power_of_2(rest) if rest else 0,
        PDL=join, num_warps=4, launch_pdl=join,
    )  # fmt: skip
