"""Tokens straight from logits on a CPU: `fast.draw`, row by row, in numpy.

A row is a few passes over its logits, without the cost of a PyTorch operator for each, and what top-k and top-p keep is
found without a sort of the vocabulary. Logits become weights: probabilities times a constant, the likeliest token at 1. Of
tokens that are equally likely, those with the lower ids are kept first, so what is kept never depends on how it was found.

Suffix legend: N rows, V vocabulary, C tokens that are still possible, S slots, K int32 words of a record.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.sampling.settings import reader

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

_read_record = reader("seed", "top_k", "temperature", "top_p", "min_p")
_WORD = 2**64 - 1
_BLOCK = 128
_STRIDE = 16
_BIN_SHIFT = 18  # weights of one bin differ by less than a thirty-second part
_NUM_BINS = (0x3F800000 >> _BIN_SHIFT) + 1  # the bits of 1.0, the largest weight


def draw_by_rows(logits_NV: Tensor, settings_SK: Tensor, slots_N: Tensor, positions_N: Tensor, out_N: Tensor) -> None:
    """See `sapwood.sampling.fast.draw`."""
    if logits_NV.dtype != torch.float32:
        logits_NV = logits_NV.float()
    if logits_NV.stride(-1) != 1:
        logits_NV = logits_NV.contiguous()
    logits, out = logits_NV.numpy(), out_N.numpy()
    settings = settings_SK.numpy()
    tokens = logits.argmax(-1).tolist()  # the first of the largest, or of those that are no numbers
    with np.errstate(all="ignore"):
        for row, (token, slot, position) in enumerate(zip(tokens, slots_N.tolist(), positions_N.tolist(), strict=True)):
            best = logits[row, token]
            if not np.isfinite(best):
                out[row] = -1
                continue
            seed, k, temperature, p, min_p = _read_record(settings[slot].tobytes())
            if temperature > 0 and k != 1:
                token = _draw(logits[row], best, k, temperature, p, min_p, uniform(seed, position))
            out[row] = token


def uniform(seed: int, position: int) -> float:
    """In [0, 1): a function of a request's seed and a token's position, so that randomness has no state.

    The stream of a seed is SplitMix64 (Steele, Lea and Flood, 2014) started at the mixed seed, so that neighbouring seeds
    share nothing. 40 bits are fine enough for any probability that float32 weights express, and 1 - 2**-40 is below 1.
    """
    hashed = _mix((_mix(seed & _WORD) + (position + 1) * 0x9E3779B97F4A7C15) & _WORD)
    return (hashed >> 24) * 2.0**-40


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def _draw(logits_V: Floats, best: Any, k: int, temperature: float, p: float, min_p: float, uniform: float) -> int:
    ids_C = likeliest(logits_V, k) if 0 < k < len(logits_V) else None
    weights_C: Floats = (logits_V if ids_C is None else logits_V[ids_C]) - best
    weights_C /= np.float32(temperature)
    np.exp(weights_C, out=weights_C)
    if p < 1:
        kept = nucleus(weights_C, p)
        weights_C, ids_C = weights_C[kept], kept if ids_C is None else ids_C[kept]
    if min_p > 0:
        kept = np.flatnonzero(weights_C >= np.float32(min_p))
        weights_C, ids_C = weights_C[kept], kept if ids_C is None else ids_C[kept]
    place = choose(weights_C, uniform)
    return place if ids_C is None else int(ids_C[place])


def likeliest(values_V: Floats, k: int) -> Ids:
    """The ids of the k largest values, fewer than there are, in ascending order; of equal ones those with lower ids."""
    num_strides = len(values_V) // _STRIDE
    ids: Ids | None = None
    if k < num_strides:
        # The k-th largest of the maxima of disjoint parts is reached by k values, and by few more.
        maxima = values_V[: num_strides * _STRIDE].reshape(_STRIDE, num_strides).max(0)
        ids = np.flatnonzero(values_V >= np.partition(maxima, num_strides - k)[num_strides - k])
        values_V = values_V[ids]
    floor = np.partition(values_V, len(values_V) - k)[len(values_V) - k]
    wanted = values_V > floor
    wanted[np.flatnonzero(values_V == floor)[: k - np.count_nonzero(wanted)]] = True
    kept = np.flatnonzero(wanted)
    return kept if ids is None else ids[kept]


def nucleus(weights_C: Floats, p: float) -> Ids:
    """The fewest largest weights that together have the share p of all, in ascending order; of equal ones the first.

    Non-negative floats are ordered as their bits are: the first bits of the least weight that is kept are found by
    adding up the weights that have the same ones, and only those that share them with it are sorted.
    """
    bins_C = weights_C.view(np.int32) >> _BIN_SHIFT
    masses = np.bincount(bins_C, weights=weights_C, minlength=_NUM_BINS)
    from_top = masses[::-1].cumsum()
    target = from_top[-1] * p
    place = min(int(np.searchsorted(from_top, target)), _NUM_BINS - 1)
    last = _NUM_BINS - 1 - place
    wanted = bins_C > last
    alike = np.flatnonzero(bins_C == last)
    alike = alike[np.argsort(-weights_C[alike], kind="stable")]
    ends = weights_C[alike].cumsum(dtype=np.float64)
    rest = target - (from_top[place - 1] if place else 0.0)
    wanted[alike[: int(np.searchsorted(ends, rest)) + 1]] = True
    return np.flatnonzero(wanted)


def choose(weights_C: Floats, uniform: float) -> int:
    """The place at which the sum of the weights, in their order, passes `uniform` of the whole.

    First the block is found, then the place in it. Beyond a block sums are float64, so that the order of adding makes no
    difference that counts.
    """
    num_blocks = len(weights_C) // _BLOCK
    if num_blocks < 2:
        return _passes(weights_C.cumsum(dtype=np.float64), uniform)
    whole = num_blocks * _BLOCK
    sums = np.empty(num_blocks + 1, np.float32)
    np.add.reduce(weights_C[:whole].reshape(num_blocks, _BLOCK), axis=1, out=sums[:num_blocks])
    sums[num_blocks] = weights_C[whole:].sum()
    ends = sums.cumsum(dtype=np.float64)
    target = float(ends[-1]) * uniform
    block = min(int(np.searchsorted(ends, target, side="right")), num_blocks)
    inner = weights_C[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    # Two ways to add the same block differ in the last bits: stay below its end, where only zeros follow.
    rest = min(target - (float(ends[block - 1]) if block else 0.0), float(inner[-1]) * (1 - 2.0**-50))
    return block * _BLOCK + min(int(np.searchsorted(inner, rest, side="right")), len(inner) - 1)


def _passes(ends_C: NDArray[np.float64], uniform: float) -> int:
    return min(int(np.searchsorted(ends_C, float(ends_C[-1]) * uniform, side="right")), len(ends_C) - 1)
