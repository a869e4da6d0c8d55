"""Drawing tokens from logits in two launches; `sapwood.sampling.fast` holds the contract.

`scan` reads all logits once, a block of the vocabulary per program, and notes the best logit and, for rows that draw at
random, the sum of the weights. `pick`, a program per row, finds the block in which the token is and then the token.

A weight is exp((logit - best of the row) / temperature), a float32 in [0, 1], and compared by its bits, which are
ordered alike. Top-k, top-p and min-p keep the tokens above a floor and, of those that are equal to it, a number with
the lowest ids. Three things spare reading the whole row again and again to find the floor: strips of 64 tokens whose
best token is below what the bests of all strips allow the floor to be are never read; each reading tries three pivots;
and once few tokens are left between what is known to be too low and too high, they are gathered and searched as one
tile. Masses are integers, weights times 2**40, so the order of adding cannot matter.

Suffix legend: N rows, V vocabulary, B blocks, S strips, X strips of a block, Y tokens of a strip, C candidates, K words
of a settings record. Without a suffix for rows, a tensor is that of one row.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton.jit import jit
from sapwood.kernels.triton.pdl import join, supported

STRIP, STRIPS = 64, 128  # tokens of a strip, strips of a block
CANDIDATES = 4096  # so many fit into one tile

_LOG2E = tl.constexpr(1.4426950408889634)
_MASS = tl.constexpr(2.0**40)  # of weight 1
_TOP = tl.constexpr(0x3F800001)  # the bits of the first float32 above 1
_ALL = tl.constexpr(1 << 30)
_UNIFORM = tl.constexpr(2.0**-40)  # of a hash's upper 40 bits
_BELOW_ONE = tl.constexpr(1 - 2.0**-50)
_COARSE = tl.constexpr(1 << 16)  # how close strips need to be known, in bits of a weight: less than 1%


@jit
def _wishes(record, V: tl.constexpr, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
            MIN_P: tl.constexpr):  # fmt: skip
    """(temperature, k, p, min_p, whether random, whether filtered) of a row; k is 0 where all tokens are wanted."""
    temperature = tl.load(record + TEMPERATURE).to(tl.float32, bitcast=True)
    k = tl.load(record + TOP_K)
    p = tl.load(record + TOP_P).to(tl.float32, bitcast=True)
    min_p = tl.load(record + MIN_P).to(tl.float32, bitcast=True)
    random = (temperature > 0.0) & (k != 1)
    k = tl.where(k < V, k, 0)
    return temperature, k, p, min_p, random, random & ((k > 0) | (p < 1.0) | (min_p > 0.0))


@jit(do_not_specialize_on_alignment=["settings_SK", "slots_N"])
def scan(
    logits_NV,
    stride,
    settings_SK,
    slots_N,
    best_NB,
    sum_NB,
    best_NS,
    V: tl.constexpr,
    K: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Of one block: its best logit, +inf if one of them is no number; of random rows the sum of the weights relative to
    it; of filtered rows the best of each strip. Grid (B, N)."""
    if EARLY:
        join()
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    record = settings_SK + tl.load(slots_N + row).to(tl.int64) * K
    temperature, _, _, _, random, filtered = _wishes(record, V, TEMPERATURE, TOP_K, TOP_P, MIN_P)
    strip_X = block * STRIPS + tl.arange(0, STRIPS)
    i_XY = strip_X[:, None] * STRIP + tl.arange(0, STRIP)[None, :]
    l_XY = tl.load(logits_NV + row * stride + i_XY, mask=i_XY < V, other=float("-inf")).to(tl.float32)
    l_XY = tl.where(l_XY == l_XY, l_XY, float("inf"))
    best_X = tl.max(l_XY, axis=1)
    best = tl.max(best_X, axis=0)
    place = row * tl.num_programs(0) + block
    tl.store(best_NB + place, best)
    if random:
        pivot = tl.where(best == float("-inf"), 0.0, best)
        weight_XY = tl.exp2((l_XY - pivot) * (_LOG2E / temperature))
        tl.store(sum_NB + place, tl.sum(tl.sum(weight_XY, axis=1), axis=0))
    if filtered:
        tl.store(best_NS + row * tl.num_programs(0) * STRIPS + strip_X, best_X)


@jit
def _bits(logit, best, scale):
    """The bits of weights. That this is the only way from a logit to its weight makes them the same everywhere."""
    return tl.exp2((logit - best) * scale).to(tl.int32, bitcast=True)


@jit
def _mass(bits):
    return (bits.to(tl.float32, bitcast=True) * _MASS).to(tl.int64)


@jit
def _share(mass, p):
    """The least mass that has the probability p."""
    return tl.ceil(mass.to(tl.float64) * p.to(tl.float64)).to(tl.int64)


@jit
def _mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def _uniform(seed, position):
    """`sapwood.sampling.rows.uniform`; `seed` points at two words, the low one first."""
    high, low = tl.load(seed + 1).to(tl.int64), tl.load(seed).to(tl.int64)
    mixed = _mix(((high << 32) | (low & 0xFFFFFFFF)).to(tl.uint64))
    hashed = _mix(mixed + (position.to(tl.int64) + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
    return (hashed >> 24).to(tl.int64).to(tl.float64) * _UNIFORM


@jit
def _narrow(low, high, reach, count, mass, pivot, pivot_count, pivot_mass, need, by_mass):
    """A bracket after a pivot was tried, of which `pivot_count` tokens and `pivot_mass` are at or above it.

    The floor is in [low, high); `reach` is how many tokens are at or above `low`, `count` and `mass` what is at or
    above `high`.
    """
    enough = tl.where(by_mass, pivot_mass, pivot_count.to(tl.int64)) >= need
    is_low, is_high = enough & (pivot > low), (enough == 0) & (pivot < high)
    low, reach = tl.where(is_low, pivot, low), tl.where(is_low, pivot_count, reach)
    high, count = tl.where(is_high, pivot, high), tl.where(is_high, pivot_count, count)
    return low, high, reach, count, tl.where(is_high, pivot_mass, mass)


@jit
def _search(bits_C, low, high, count, mass, need, by_mass, width: tl.constexpr):
    """Narrow a bracket to `width` by the tokens of a tile, which are all that the bracket holds (others are below it).
    Returns low and the count and mass at or above the last `high`."""
    mass_C = _mass(bits_C)
    count_0, mass_0, reach = count, mass, count
    while high - low > width:
        step = tl.maximum((high - low) >> 2, 1)
        a, b, c = low + step, low + step * 2, low + step * 3
        count_a = count_0 + tl.sum((bits_C >= a).to(tl.int32), axis=0)
        count_b = count_0 + tl.sum((bits_C >= b).to(tl.int32), axis=0)
        count_c = count_0 + tl.sum((bits_C >= c).to(tl.int32), axis=0)
        mass_a = mass_0 + tl.sum(tl.where(bits_C >= a, mass_C, 0), axis=0)
        mass_b = mass_0 + tl.sum(tl.where(bits_C >= b, mass_C, 0), axis=0)
        mass_c = mass_0 + tl.sum(tl.where(bits_C >= c, mass_C, 0), axis=0)
        low, high, reach, count, mass = _narrow(low, high, reach, count, mass, a, count_a, mass_a, need, by_mass)
        low, high, reach, count, mass = _narrow(low, high, reach, count, mass, b, count_b, mass_b, need, by_mass)
        low, high, reach, count, mass = _narrow(low, high, reach, count, mass, c, count_c, mass_c, need, by_mass)
    return low, count, mass


@jit
def _listed(
    logits_V, best, scale, strips_S, first, num_strips, V: tl.constexpr, STRIP: tl.constexpr, STRIPS: tl.constexpr
):
    """The bits of the weights of a block of listed strips, 0 where there is no token."""
    place_X = first + tl.arange(0, STRIPS)
    strip_X = tl.load(strips_S + place_X, mask=place_X < num_strips, other=V)
    i_XY = strip_X[:, None] * STRIP + tl.arange(0, STRIP)[None, :]
    l_XY = tl.load(logits_V + i_XY, mask=i_XY < V, other=float("-inf")).to(tl.float32)
    return _bits(l_XY, best, scale)


@jit
def _floor(
    logits_V,
    best,
    scale,
    k,
    p,
    min_p,
    mass_left,
    best_S,
    strips_S,
    bits_C,
    V: tl.constexpr,
    S: tl.constexpr,
    S_PAD: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """What top-k, then top-p, then min-p keep: all above the floor and the first `num_equal` of those equal to it.

    Writes the ids of the strips that may hold such tokens, in order. Returns (floor, num_equal, num_strips).
    `mass_left` is that of the whole row.
    """
    by_k, by_p = k > 0, p < 1.0
    min_bits = min_p.to(tl.int32, bitcast=True)
    none, nothing = tl.full([], 0, tl.int32), tl.full([], 0, tl.int64)
    low, high = tl.full([], 1, tl.int32), tl.full([], _TOP, tl.int32)  # a weight of 0 is kept by nobody

    s_S = tl.arange(0, S_PAD)
    bits_S = _bits(tl.load(best_S + s_S, mask=s_S < S, other=float("-inf")), best, scale)
    if by_k | by_p:
        need = tl.where(by_k, k.to(tl.int64), _share(mass_left, p))
        low = _search(bits_S, low, high, none, nothing, need, k == 0, _COARSE)[0]
        if k == 0:  # V tokens below (1 - p) / V of the mass cannot be the rest that is not needed
            least = (mass_left.to(tl.float64) * (1.0 - p.to(tl.float64)) * (0.999 / (V * _MASS))).to(tl.float32)
            low = tl.maximum(low, least.to(tl.int32, bitcast=True))
    else:
        low = tl.maximum(low, min_bits)
    kept_S = (bits_S >= low).to(tl.int32)
    tl.store(strips_S + tl.cumsum(kept_S, axis=0) - 1, s_S, mask=kept_S > 0)
    num_strips = tl.sum(kept_S, axis=0)
    tl.debug_barrier()

    floor, num_equal = tl.full([], 1, tl.int32), tl.full([], _ALL, tl.int32)
    for stage in range(2):
        by_mass = by_p & (stage == 1)
        if by_mass | (by_k & (stage == 0)):
            need = tl.where(by_mass, _share(mass_left, p), k.to(tl.int64))
            low, high = tl.maximum(low, floor), tl.full([], _TOP, tl.int32)
            reach, count, mass = num_strips * STRIP, none, nothing
            while (high - low > 1) & (reach - count > CANDIDATES):
                step = tl.maximum((high - low) >> 2, 1)
                a, b, c = low + step, low + step * 2, low + step * 3
                count_aX, mass_aX = tl.zeros([STRIPS], tl.int32), tl.zeros([STRIPS], tl.int64)
                count_bX, mass_bX = tl.zeros([STRIPS], tl.int32), tl.zeros([STRIPS], tl.int64)
                count_cX, mass_cX = tl.zeros([STRIPS], tl.int32), tl.zeros([STRIPS], tl.int64)
                for first in range(0, num_strips, STRIPS):
                    bits_XY = _listed(logits_V, best, scale, strips_S, first, num_strips, V, STRIP, STRIPS)
                    mass_XY = _mass(bits_XY)
                    count_aX += tl.sum((bits_XY >= a).to(tl.int32), axis=1)
                    count_bX += tl.sum((bits_XY >= b).to(tl.int32), axis=1)
                    count_cX += tl.sum((bits_XY >= c).to(tl.int32), axis=1)
                    mass_aX += tl.sum(tl.where(bits_XY >= a, mass_XY, 0), axis=1)
                    mass_bX += tl.sum(tl.where(bits_XY >= b, mass_XY, 0), axis=1)
                    mass_cX += tl.sum(tl.where(bits_XY >= c, mass_XY, 0), axis=1)
                count_a, mass_a = tl.sum(count_aX, axis=0), tl.sum(mass_aX, axis=0)
                count_b, mass_b = tl.sum(count_bX, axis=0), tl.sum(mass_bX, axis=0)
                count_c, mass_c = tl.sum(count_cX, axis=0), tl.sum(mass_cX, axis=0)
                low, high, reach, count, mass = _narrow(
                    low, high, reach, count, mass, a, count_a, mass_a, need, by_mass
                )
                low, high, reach, count, mass = _narrow(
                    low, high, reach, count, mass, b, count_b, mass_b, need, by_mass
                )
                low, high, reach, count, mass = _narrow(
                    low, high, reach, count, mass, c, count_c, mass_c, need, by_mass
                )
            if high - low > 1:
                num_found = none
                for first in range(0, num_strips, STRIPS):
                    bits_XY = _listed(logits_V, best, scale, strips_S, first, num_strips, V, STRIP, STRIPS)
                    inside_XY = ((bits_XY >= low) & (bits_XY < high)).to(tl.int32)
                    num_X = tl.sum(inside_XY, axis=1)
                    before_X = num_found + tl.cumsum(num_X, axis=0) - num_X
                    place_XY = before_X[:, None] + tl.cumsum(inside_XY, axis=1) - 1
                    tl.store(bits_C + place_XY, bits_XY, mask=inside_XY > 0)
                    num_found += tl.sum(num_X, axis=0)
                tl.debug_barrier()
                c_C = tl.arange(0, CANDIDATES)
                found_C = tl.load(bits_C + c_C, mask=c_C < num_found, other=0)
                low, count, mass = _search(found_C, low, high, count, mass, need, by_mass, 1)
                tl.debug_barrier()
            floor = low
            unit = tl.where(by_mass, tl.maximum(_mass(floor), 1), 1)
            missing = need - tl.where(by_mass, mass, count.to(tl.int64))
            num_equal = tl.minimum((missing + unit - 1) // unit, _ALL).to(tl.int32)
            mass_left = mass + num_equal.to(tl.int64) * _mass(floor)
    num_equal = tl.where(min_bits > floor, _ALL, num_equal)
    return tl.maximum(floor, min_bits), num_equal, num_strips


@jit
def _sums(
    logits_V,
    best,
    scale,
    floor,
    num_equal,
    strips_S,
    num_strips,
    sum_B,
    equal_B,
    V: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
):
    """Write, for each block of listed strips, the sum of the weights that are kept and how many of the tokens that are
    equal to the floor the block may still keep."""
    left = num_equal
    for first in range(0, num_strips, STRIPS):
        bits_XY = _listed(logits_V, best, scale, strips_S, first, num_strips, V, STRIP, STRIPS)
        over_XY = tl.where(bits_XY > floor, bits_XY, 0).to(tl.float32, bitcast=True)
        num_same = tl.sum(tl.sum((bits_XY == floor).to(tl.int32), axis=1), axis=0)
        same = tl.minimum(num_same, left).to(tl.float32) * floor.to(tl.float32, bitcast=True)
        tl.store(sum_B + first // STRIPS, tl.sum(tl.sum(over_XY, axis=1), axis=0) + same)
        tl.store(equal_B + first // STRIPS, left)
        left = tl.maximum(left - num_same, 0)
    tl.debug_barrier()


@jit(do_not_specialize_on_alignment=["settings_SK", "slots_N", "positions_N", "out_N"])
def pick(
    logits_NV,
    stride,
    settings_SK,
    slots_N,
    positions_N,
    best_NB,
    sum_NB,
    best_NS,
    equal_NB,
    strips_NS,
    bits_NC,
    out_N,
    V: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
    SEED: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    B_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The token of one row. Grid (N,)."""
    if EARLY:
        join()
    row = tl.program_id(0).to(tl.int64)
    record = settings_SK + tl.load(slots_N + row).to(tl.int64) * K
    temperature, k, p, min_p, random, filtered = _wishes(record, V, TEMPERATURE, TOP_K, TOP_P, MIN_P)
    logits_V = logits_NV + row * stride
    b_B = tl.arange(0, B_PAD)
    best_B = tl.load(best_NB + row * B + b_B, mask=b_B < B, other=float("-inf"))
    best = tl.max(best_B, axis=0)
    j_J = tl.arange(0, STRIPS * STRIP)
    token = tl.full([], -1, tl.int32)
    if (best < float("inf")) & (best > float("-inf")):
        if random:
            scale = _LOG2E / temperature
            sum_B = tl.load(sum_NB + row * B + b_B, mask=b_B < B, other=0.0).to(tl.float64)
            sum_B *= tl.exp2((best_B - best) * scale).to(tl.float64)
            strips_S = strips_NS + row * (B * STRIPS)
            floor, left, num_strips = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
            if filtered:
                mass = (tl.sum(sum_B, axis=0) * _MASS).to(tl.int64)
                floor, left, num_strips = _floor(
                    logits_V, best, scale, k, p, min_p, mass, best_NS + row * (B * STRIPS), strips_S,
                    bits_NC + row * CANDIDATES, V, B * STRIPS, S_PAD, STRIP, STRIPS, CANDIDATES,
                )  # fmt: skip
                _sums(
                    logits_V, best, scale, floor, left, strips_S, num_strips, sum_NB + row * B, equal_NB + row * B,
                    V, STRIP, STRIPS,
                )  # fmt: skip
                sum_B = tl.load(sum_NB + row * B + b_B, mask=b_B * STRIPS < num_strips, other=0.0).to(tl.float64)
            end_B = tl.cumsum(sum_B, axis=0)
            target = tl.max(end_B, axis=0) * _uniform(record + SEED, tl.load(positions_N + row))
            passed_B = end_B <= target
            block = tl.minimum(tl.sum(passed_B.to(tl.int32), axis=0), B - 1)
            target -= tl.max(tl.where(passed_B, end_B, 0.0), axis=0)

            strip_J = block * STRIPS + j_J // STRIP
            if filtered:
                left = tl.load(equal_NB + row * B + block)
                strip_J = tl.load(strips_S + strip_J, mask=strip_J < num_strips, other=V)
            i_J = strip_J * STRIP + j_J % STRIP
            l_J = tl.load(logits_V + i_J, mask=i_J < V, other=float("-inf")).to(tl.float32)
            bits_J = _bits(l_J, best, scale)
            same_J = (bits_J == floor).to(tl.int32)
            kept_J = (bits_J > floor) | ((same_J > 0) & (tl.cumsum(same_J, axis=0) <= left))
            end_J = tl.cumsum(tl.where(kept_J, bits_J, 0).to(tl.float32, bitcast=True).to(tl.float64), axis=0)
            # Two ways to add the same block differ in the last bits: stay below its end, where only zeros follow.
            target = tl.minimum(target, tl.max(end_J, axis=0) * _BELOW_ONE)
            place = tl.sum((end_J <= target).to(tl.int32), axis=0)
            token = tl.minimum(tl.max(tl.where(j_J == place, i_J, 0), axis=0), V - 1)
        else:
            block = tl.min(tl.where(best_B == best, b_B, B_PAD), axis=0)
            i_J = block * (STRIPS * STRIP) + j_J
            l_J = tl.load(logits_V + i_J, mask=i_J < V, other=float("-inf")).to(tl.float32)
            token = tl.min(tl.where(l_J == best, i_J, V), axis=0)
    tl.store(out_N + row, token)


def draw(
    logits_NV: Tensor,
    settings_SK: Tensor,
    slots_N: Tensor,
    positions_N: Tensor,
    out_N: Tensor,
    words: Mapping[str, int],
) -> None:
    """`sapwood.sampling.fast.draw`; `words` names the first word of each column of a record."""
    num_rows, vocab = logits_NV.shape
    num_words = settings_SK.shape[1]
    num_blocks = triton.cdiv(vocab, STRIPS * STRIP)
    num_strips = num_blocks * STRIPS
    device = logits_NV.device
    early = supported(device)
    assert logits_NV.stride(1) == 1
    assert settings_SK.is_contiguous()

    def scratch(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num_rows, size, dtype=dtype, device=device)

    best_NB, sum_NB = scratch(num_blocks, torch.float32), scratch(num_blocks, torch.float32)
    best_NS = scratch(num_strips, torch.float32)
    columns = {name.upper(): words[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    scan[(num_blocks, num_rows)](
        logits_NV, logits_NV.stride(0), settings_SK, slots_N, best_NB, sum_NB, best_NS,
        V=vocab, K=num_words, **columns, STRIP=STRIP, STRIPS=STRIPS, EARLY=early, num_warps=8, launch_pdl=early,
    )  # fmt: skip
    pick[(num_rows,)](
        logits_NV, logits_NV.stride(0), settings_SK, slots_N, positions_N, best_NB, sum_NB, best_NS,
        scratch(num_blocks, torch.int32), scratch(num_strips, torch.int32), scratch(CANDIDATES, torch.int32), out_N,
        V=vocab, B=num_blocks, K=num_words, SEED=words["seed"], **columns,
        STRIP=STRIP, STRIPS=STRIPS, CANDIDATES=CANDIDATES, B_PAD=triton.next_power_of_2(num_blocks),
        S_PAD=triton.next_power_of_2(num_strips), EARLY=early, num_warps=16, launch_pdl=early,
    )  # fmt: skip
