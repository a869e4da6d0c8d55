"""How the products of experts are cut, by their shape and the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FEW = 2
"""Most tokens of which each expert is a product of its own: they share next to none."""


class Cut(NamedTuple):
    """Programs of so many rows of the weights and warps, which keep `stages` tiles of `depth` columns coming.

    `tile` pairs of one expert at a time, or 0 where each is by itself; `turned`: rows are the longer side of what the matrix
    units multiply.
    """

    tile: int
    rows: int
    depth: int
    warps: int
    stages: int
    turned: bool = False

    def tiles(self, count: int, pairs: int) -> int:
        """The most tiles that so many pairs can need, of so many experts."""
        return min(pairs, count + pairs // self.tile)


_OTHERWISE = {
    FEW: Cut(0, 8, 512, 4, 1),
    64: Cut(16, 64, 128, 4, 4, turned=True),
    512: Cut(32, 64, 128, 4, 4, turned=True),
    2048: Cut(64, 128, 64, 4, 4),
    1 << 30: Cut(128, 128, 64, 8, 3),
}
"""What was best, or nearly, for both shapes of qwen3-30b-a3b."""

_CUTS: dict[tuple[int, ...], dict[int, Cut]] = {
    # qwen3-30b-a3b: gate and up, down
    (128, 1536, 2048): {
        FEW: Cut(0, 8, 512, 4, 1),
        64: Cut(16, 64, 128, 4, 4, turned=True),
        512: Cut(32, 64, 128, 4, 4, turned=True),
        2048: Cut(64, 64, 64, 4, 4),
        1 << 30: Cut(128, 128, 64, 8, 3),
    },
    (128, 2048, 768): {
        FEW: Cut(0, 4, 1024, 4, 1),
        64: Cut(16, 64, 128, 4, 4, turned=True),
        512: Cut(32, 64, 128, 4, 4, turned=True),
        2048: Cut(64, 128, 64, 4, 4),
        1 << 30: Cut(128, 256, 64, 8, 3),
    },
    # deepseek-v2-lite, on an H200: down, of which a program reads an expert's columns at once
    (64, 2048, 1408): _OTHERWISE | {FEW: Cut(0, 4, 2048, 8, 1)},
}
"""The best found by `bench/experts.py --sweep` on an H100: {shape of the weights: {up to so many tokens: cut}}, for as many
tokens as have as many pairs of an expert where 8 of 128 are chosen for each."""


def cut_for(shape: Sequence[int], num_tokens: int, top: int) -> Cut:
    """For weights of this shape, experts first, of which so many are chosen for each token."""
    table = _CUTS.get(tuple(shape), _OTHERWISE)
    if num_tokens <= FEW:
        return table[FEW]
    alike = num_tokens * top * 16 // shape[0]
    return next(cut for most, cut in table.items() if alike <= most and cut.tile)
