"""How large a model is, before any device is touched."""

from __future__ import annotations

import math

from sapwood.arch.network import Network
from sapwood.arch.shard import weight_map


def num_parameters(decoder: Network) -> int:
    """Elements of all weights of a plain checkpoint, shared ones once."""
    sizes = (math.prod(len(range(s.start, s.stop, s.step or 1)) for s in piece.source) for piece in weight_map(decoder))
    return sum(sizes)
