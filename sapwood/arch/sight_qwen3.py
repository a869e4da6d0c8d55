"""The tower of Qwen3-VL and Qwen3.5: Qwen's patches, with learned places besides turns, and states of its layers for the decoder's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sapwood.arch.sight import QwenTower, Sizes, affine


@dataclass(frozen=True)
class Qwen3Tower(QwenTower):
    """Patches get a vector for their place, from a square table of `side` by `side` that is stretched over the image.

    Behind each of the layers `deep` its states become vectors that are added behind the decoder's first layers, one each (DeepStack, Meng
    et al., 2024).
    """

    side: int = 48
    deep: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        return len(self.deep)

    def params(self) -> Iterator[tuple[str, Sizes]]:
        hidden = self.hidden
        yield from affine("tower.patch_embed.proj", hidden, 3, self.frames, self.patch, self.patch)
        yield "tower.pos_embed.weight", (self.side**2, hidden)
        for index in range(self.layers):
            layer = f"tower.blocks.{index}"
            for norm in ("norm1", "norm2"):
                yield from affine(f"{layer}.{norm}", hidden)
            yield from affine(f"{layer}.attn.qkv", 3 * hidden, hidden)
            yield from affine(f"{layer}.attn.proj", hidden, hidden)
            yield from affine(f"{layer}.mlp.linear_fc1", self.inner, hidden)
            yield from affine(f"{layer}.mlp.linear_fc2", hidden, self.inner)
        wide = hidden * self.merge**2
        mergers = [("tower.merger", hidden)]
        mergers += [(f"tower.deepstack_merger_list.{index}", wide) for index in range(len(self.deep))]
        for name, normed in mergers:
            yield from affine(f"{name}.norm", normed)
            yield from affine(f"{name}.linear_fc1", wide, wide)
            yield from affine(f"{name}.linear_fc2", self.out, wide)
