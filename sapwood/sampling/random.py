"""Randomness without state: a uniform number is a function of a request's seed and a token's position."""

from __future__ import annotations

from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_BITS = 40  # of a uniform: fine enough for any probability that float32 weights express, and 1 - 2**-40 is below 1


def uniform(seeds_N: Tensor, positions_N: Tensor) -> Tensor:
    """Float64 in [0, 1) from int64 seeds and positions, on their device.

    The stream of a seed is SplitMix64 (Steele, Lea and Flood, 2014) started at the mixed seed, so that neighbouring
    seeds share nothing.
    """
    hashed_N = _mix(_mix(seeds_N) + (positions_N + 1) * _GOLDEN)
    return _shift(hashed_N, 64 - _BITS).double() * 2.0**-_BITS


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, num_bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)
