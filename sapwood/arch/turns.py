"""What turns queries and keys by their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sapwood.arch.scaling import LinearScaling, Scaling, Sharpening


@dataclass(frozen=True)
class Rope:
    """Rotary positions on the first `dim` dimensions of each head, dimension i paired with i + dim / 2, or if
    `interleaved` each even one with the next. Pairs of three `sections`, of so many each, turn by a position of their own each where
    tokens have three; `woven` ones take turns."""

    dim: int
    theta: float
    scaling: Scaling | None = None
    interleaved: bool = False
    sharpening: Sharpening | None = None
    sections: tuple[int, ...] | None = None
    woven: bool = False


STILL = Rope(2, 1.0, LinearScaling(math.inf))
"""Turns nothing, for layers without rotary positions."""
