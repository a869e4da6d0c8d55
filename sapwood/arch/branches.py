"""A feed-forward of two branches, as Gemma 4 has it: an MLP, and experts beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sapwood.arch.beside import Factor
from sapwood.arch.experts import Experts
from sapwood.arch.parts import Mlp, Norm


@dataclass(frozen=True)
class Branches:
    """after(mlp(norm(x))) + after_experts(experts(experts_norm(x))), each expert's weight times one of `factors`."""

    mlp: Mlp
    after: Norm
    experts: Experts
    experts_norm: Norm
    after_experts: Norm
    factors: Factor

    indivisible: ClassVar[bool] = True  # each branch is normed before both are added up
