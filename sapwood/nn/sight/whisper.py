"""Whisper's encoder as a tower (Radford et al., 2022).

Suffix legend: N windows of one length, M mel bins, F moments of spectra, L positions, E size of a state, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.arch import sound
from sapwood.base.media import Media
from sapwood.nn.make import make
from sapwood.nn.sight.tower import TowerModule, activated

_EPS = 1e-5


class Whisper(TowerModule):
    part: sound.SoundTower

    @torch.inference_mode()
    def encode(self, media: Sequence[Media]) -> list[Tensor]:
        """One window after the other: each costs as much as an image."""
        return [self._of(self.values(one), one.arrays["windows"].numpy().tolist()) for one in media]

    def values(self, one: Media) -> Tensor:
        """features_MF of all windows."""
        return torch.from_numpy(np.array(one.arrays["features"].numpy())).to(self.device)

    def _of(self, features_MF: Tensor, lengths: Sequence[int]) -> Tensor:
        ends = np.cumsum([0, *(self.part.moments(length) for length in lengths)]).tolist()
        cuts = (features_MF[:, first:end] for first, end in pairwise(ends))
        return torch.cat([self._window(cut, length) for cut, length in zip(cuts, lengths, strict=True)])

    def _window(self, features_MF: Tensor, length: int) -> Tensor:
        """What is behind the last position is not looked at by others: they are not computed."""
        part = self.part
        x_EF = F.gelu(
            F.conv1d(features_MF.to(self.dtype), self["tower.conv1.weight"], self["tower.conv1.bias"], padding=1)
        )
        x_EF = x_EF[:, : sound.MOMENTS * length]
        x_EL = F.gelu(F.conv1d(x_EF, self["tower.conv2.weight"], self["tower.conv2.bias"], stride=2, padding=1))
        x_LE = x_EL.T + self["tower.embed_positions.weight"][:length]
        for index in range(part.layers):
            x_LE = self._layer(x_LE, f"tower.layers.{index}")
        if not part.joined:
            x_LE = x_LE[: length // part.group * part.group].unflatten(0, (-1, part.group)).mean(1)
        x_LE = self.centered(x_LE, "tower.layer_norm", _EPS)
        if part.joined:
            x_LE = x_LE.unflatten(0, (-1, part.group)).flatten(1)
        if part.between is None:
            return self.affine(x_LE, "joiner.linear")
        return self.affine(activated(self.affine(x_LE, "joiner.linear_1"), part.between), "joiner.linear_2")

    def _layer(self, x_LE: Tensor, name: str) -> Tensor:
        normed_LE = self.centered(x_LE, f"{name}.self_attn_layer_norm", _EPS)
        q, k, v = (
            self.affine(normed_LE, f"{name}.self_attn.{part}").unflatten(-1, (self.part.heads, -1)).transpose(0, 1)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        mixed_HLD = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x_LE = x_LE + self.affine(mixed_HLD.transpose(0, 1).flatten(1), f"{name}.self_attn.out_proj")
        inner = activated(
            self.affine(self.centered(x_LE, f"{name}.final_layer_norm", _EPS), f"{name}.fc1"), self.part.activation
        )
        return x_LE + self.affine(inner, f"{name}.fc2")


make.register(sound.SoundTower, Whisper)
