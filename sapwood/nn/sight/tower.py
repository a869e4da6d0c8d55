"""What modules of towers share.

Suffix legend: N images of one shape, C channels, Y rows of pixels, X columns, L positions, E size of a state, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.arch import sight
from sapwood.arch.shard import Piece
from sapwood.base.media import Media
from sapwood.nn.make import Site
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source, plain

MOST_AT_ONCE = 8
"""Images of one shape that are encoded together: what they need beside the weights is bounded by it."""


def activated(x: Tensor, kind: sight.SightActivation) -> Tensor:
    match kind:
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)


class TowerModule(Leaf):
    """A tower. Its weights are registered by the names that its part has for them, and are found there by `self[name]`."""

    def __init__(self, part: sight.Tower, site: Site) -> None:
        super().__init__()
        self.part, self.dtype, self.device = part, site.how.dtype, site.how.device
        self._weights: dict[str, nn.Parameter] = {}
        for name, shape in part.params():
            made = nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)
            self._weights[name] = made
            self.register_parameter(name.replace(".", "/"), made)

    def load(self, piece: Piece, source: Source) -> None:
        self._weights[piece.param][piece.target].copy_(plain(piece, source))

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def affine(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def centered(self, x: Tensor, name: str, eps: float) -> Tensor:
        """Layer norm."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def squared(self, x: Tensor, name: str, eps: float) -> Tensor:
        """RMS norm, whose sums are in float32."""
        weight = self._weights[f"{name}.weight"]
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * normed.to(x.dtype)

    @torch.inference_mode()
    def encode(self, media: Sequence[Media]) -> list[Tensor]:
        """vectors_LD of each, in the model's dtype. Those of equal shapes are encoded together."""
        shapes = [one.arrays["pixels"].shape for one in media]
        order = sorted(range(len(media)), key=lambda index: shapes[index])
        found: dict[int, Tensor] = {}
        for _, run in groupby(order, key=lambda index: shapes[index]):
            alike = list(run)
            for first in range(0, len(alike), MOST_AT_ONCE):
                some = alike[first : first + MOST_AT_ONCE]
                found |= zip(some, self.of([media[index] for index in some]), strict=True)
        return [found[index] for index in range(len(media))]

    def of(self, media: Sequence[Media]) -> list[Tensor]:
        """vectors_LD of each of some whose pixels have one shape."""
        return self.vectors([self.values(one) for one in media])

    def values(self, one: Media) -> Tensor:
        """pixels_NCYX as the tower takes them: scaled and normed on the device, in float32."""
        pixels_NCYX = torch.from_numpy(np.array(one.arrays["pixels"].numpy())).to(self.device).float()
        normal = torch.from_numpy(np.array(one.arrays["normal"].numpy())).to(self.device)
        mean, deviation = normal[1:4].view(3, 1, 1), normal[4:7].view(3, 1, 1)
        return (pixels_NCYX * normal[0] - mean) / deviation

    def vectors(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Of images whose pixels have one shape."""
        raise NotImplementedError
