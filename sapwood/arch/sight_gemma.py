"""The tower of Gemma 3: SigLIP's states, averaged over squares of patches; within an image every position sees all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sapwood.arch.sight import Sizes, Tower, Vit


@dataclass(frozen=True)
class PooledTower(Tower):
    """`side` by `side` averages of an image's patches, normed, through one matrix."""

    vit: Vit = None  # type: ignore[assignment]
    side: int = 16

    @property
    def ahead(self) -> bool:
        return True

    @property
    def length(self) -> int:
        """Positions of an image."""
        return self.side**2

    def largest(self, most: int) -> tuple[Sizes, int]:
        return (1, 3, self.vit.image, self.vit.image), self.length

    def params(self) -> Iterator[tuple[str, Sizes]]:
        yield from self.vit.params("tower")
        yield "joiner.mm_input_projection_weight", (self.vit.hidden, self.out)
        yield "joiner.mm_soft_emb_norm.weight", (self.vit.hidden,)
