"""The tower of Mistral Small 3 and Pixtral: an image of nearly its own size in patches, turned by row and column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sapwood.arch.sight import SightActivation, Sizes, Tower, affine


@dataclass(frozen=True)
class PixtralTower(Tower):
    """RMS norms, no biases, gated MLPs; `features` are numbers of hidden states, 0 before the first layer, side by side.

    With a `merge`, states are normed with `join_eps`, and those of each square of so many become one through a Linear, before the two that
    all of them go through.
    """

    hidden: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    image: int = 1024
    patch: int = 16
    merge: int | None = None
    features: tuple[int, ...] = ()
    activation: SightActivation = "gelu"
    join: SightActivation = "gelu"
    join_eps: float = 1e-5
    bias: bool = False
    theta: float = 10000.0

    @property
    def square(self) -> int:
        """Pixels of a position's side."""
        return self.patch * (self.merge or 1)

    @property
    def scales(self) -> bool:
        return True

    def largest(self, most: int) -> tuple[Sizes, int]:
        side = max(1, min(math.isqrt(most), self.image // self.square))
        return (1, 3, side * self.square, side * self.square), side**2

    def params(self) -> Iterator[tuple[str, Sizes]]:
        hidden = self.hidden
        yield "tower.patch_conv.weight", (hidden, 3, self.patch, self.patch)
        yield "tower.ln_pre.weight", (hidden,)
        for index in range(self.layers):
            layer = f"tower.transformer.layers.{index}"
            for norm in ("attention_norm", "ffn_norm"):
                yield f"{layer}.{norm}.weight", (hidden,)
            for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{layer}.attention.{part}.weight", (hidden, hidden)
            for part in ("gate_proj", "up_proj"):
                yield f"{layer}.feed_forward.{part}.weight", (self.inner, hidden)
            yield f"{layer}.feed_forward.down_proj.weight", (hidden, self.inner)
        wide = hidden * len(self.features)
        if self.merge is not None:
            yield "joiner.norm.weight", (wide,)
            yield "joiner.patch_merger.merging_layer.weight", (wide, wide * self.merge**2)
        yield from affine("joiner.linear_1", self.out, wide, bias=self.bias)
        yield from affine("joiner.linear_2", self.out, self.out, bias=self.bias)
