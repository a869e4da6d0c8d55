"""Attention that keeps one vector of each position, of which all heads make their keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sapwood.arch.parts import Linear, Norm, Rope
from sapwood.base.kv import Latent


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, 2024): what is kept of a position is one normed latent and one turned key.

    `down` yields what queries are made of, if `q_norm` norms that, and then the latent and the key that is to be turned. `q` makes
    of the former, or of the layer's input, per head `nope` numbers to compare with expanded latents and `rope` to be turned; `up`
    expands latents, per head, to as many as `nope` and to a value.
    """

    num_heads: int
    nope: int
    down: Linear
    q_norm: Norm | None
    q: Linear
    kv_norm: Norm
    up: Linear
    out: Linear
    rope: Rope
    scale: float

    counted: ClassVar[tuple[str, ...]] = ("num_heads",)
    fixed: ClassVar[tuple[str, ...]] = ("up",)

    @property
    def kv(self) -> Latent:
        return Latent(self.num_heads, self.kv_norm.size, self.rope.dim)

    @property
    def value(self) -> int:
        """Numbers of a head's value."""
        return self.up.out // self.num_heads - self.nope
