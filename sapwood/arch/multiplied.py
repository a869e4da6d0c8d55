"""Products that are multiplied by what a config says."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.arch.parts import Linear


@dataclass(frozen=True)
class Multiplied:
    """The products of a Linear, those of each of its parts times a factor."""

    linear: Linear
    factors: tuple[float, ...]
