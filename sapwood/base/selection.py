"""How a token's experts are chosen: what a model states, and kernels do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Score = Literal["softmax", "sigmoid", "sparsemix"]


@dataclass(frozen=True)
class Selection:
    """How a router's products become a token's `top` experts and their weights.

    They are scored by a softmax over all experts or each by a sigmoid. The best are chosen, after offsets of the scores where
    there are some; of several `groups` of neighbours only in the `top_groups` whose `group_best` best add up to most; the
    first of equal ones. The weights are the scores, divided by their sum if `renormalised`, times `scale`. "sparsemix" chooses
    by the products, and weighs each choice by a softmax over those not chosen before that are less than `slack` below it,
    relative to the larger of both.
    """

    top: int
    score: Score = "softmax"
    renormalised: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2
    slack: float = 0.0
