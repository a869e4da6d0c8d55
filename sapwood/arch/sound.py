"""What models hear with: Whisper's encoder, and what joins it to a decoder.

A recording arrives as float32 `features` [mel bin, moment], the log-mel spectra of its windows side by side, and int32 `windows`, how many
positions each has in the encoder. A window's spectra reach one moment beyond its last position, but not beyond the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sapwood.arch.sight import SightActivation, Sizes, Tower, affine
from sapwood.base.media import Kind, Media

MOMENTS = 2
"""Of spectra (10 ms each) that one position of the encoder hears."""


@dataclass(frozen=True)
class SoundTower(Tower):
    """States of each window's positions, of which each `group` become one vector: their mean before the last norm, or, `joined`, they
    themselves side by side. Then a Linear, or two with an activation between.

    Windows have `positions` at most, silence behind a recording included if they are heard `whole`. A recording has at most
    `most_windows`.
    """

    hidden: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    bins: int = 128
    positions: int = 1500
    activation: SightActivation = "gelu"
    group: int = 2
    joined: bool = False
    whole: bool = False
    between: SightActivation | None = None
    bias: bool = True
    most_windows: int | None = 1

    kinds: ClassVar[tuple[Kind, ...]] = ("audio",)

    def params(self) -> Iterator[tuple[str, Sizes]]:
        hidden = self.hidden
        yield from affine("tower.conv1", hidden, self.bins, 3)
        yield from affine("tower.conv2", hidden, hidden, 3)
        yield "tower.embed_positions.weight", (self.positions, hidden)
        for index in range(self.layers):
            layer = f"tower.layers.{index}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from affine(f"{layer}.self_attn.{name}", hidden, hidden, bias=name != "k_proj")
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                yield from affine(f"{layer}.{name}", hidden)
            yield from affine(f"{layer}.fc1", self.inner, hidden)
            yield from affine(f"{layer}.fc2", hidden, self.inner)
        yield from affine("tower.layer_norm", hidden)
        wide = hidden * self.group if self.joined else hidden
        if self.between is None:
            yield from affine("joiner.linear", self.out, wide, bias=self.bias)
        else:
            yield from affine("joiner.linear_1", self.out, wide, bias=self.bias)
            yield from affine("joiner.linear_2", self.out, self.out, bias=self.bias)

    @property
    def length(self) -> int:
        """Positions in a prompt of a whole window."""
        return self.positions // self.group

    def moments(self, positions: int) -> int:
        """Of spectra that so many positions of a window hear."""
        return MOMENTS * min(positions, self.positions) + (positions < self.positions)

    def largest(self, most: int) -> tuple[Sizes, int]:
        fit = max(1, most // self.length)
        windows = fit if self.most_windows is None else min(self.most_windows, fit)
        return (self.bins, windows * self.moments(self.positions)), windows * self.length

    def example(self, most: int) -> Media:
        shape, length = self.largest(most)
        windows = np.full(length // self.length, self.positions, np.int32)
        return Media.of("audio", {"features": np.zeros(shape, np.float32), "windows": windows}, length)
