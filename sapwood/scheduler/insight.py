"""What steps tell of positions whose requests want to know it, each position once and in order.

A request that was preempted computes again what it has been told of. What was computed for a row whose tokens are void is computed again too.
"""

from __future__ import annotations

import numpy as np

from sapwood.base.insight import Columns
from sapwood.base.request import Request


def see(request: Request, found: Columns, start: int, count: int) -> None:
    """Take in what was found of `count` positions from `start` on; of those that were told before nothing is told again."""
    known = request.seen - start
    assert known >= 0, "positions are computed in their order"
    if found and count > known:
        request.insights.append({name: array[known:count] for name, array in found.items()})
        request.seen = start + count


def told(request: Request) -> Columns:
    """What is new."""
    pieces, request.insights = request.insights, []
    if len(pieces) <= 1:
        return pieces[0] if pieces else {}
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
