"""What makes scores of labels of a text's vector.

Suffix legend: N texts, E hidden size, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch import texts
from sapwood.nn.make import Site, make

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}
)


class Dense(nn.Module):
    def __init__(self, part: texts.Dense, site: Site) -> None:
        super().__init__()
        self.linear, self.norm = site.make("linear", part.linear), site.make("norm", part.norm)
        self._activation = ACTIVATIONS[part.activation]

    def forward(self, x_NE: Tensor) -> Tensor:
        x_NE = self._activation(self.linear(x_NE))
        return x_NE if self.norm is None else self.norm(x_NE)


class Classifier(nn.Module):
    """float32 scores_NL of vectors_NE."""

    def __init__(self, part: texts.Classifier, site: Site) -> None:
        super().__init__()
        self.inner, self.out = site.make("inner", part.inner), site.make("out", part.out)
        self._dtype = site.how.dtype

    def forward(self, x_NE: Tensor) -> Tensor:
        x_NE = x_NE.to(self._dtype)
        scores_NL: Tensor = self.out(x_NE if self.inner is None else self.inner(x_NE))
        return scores_NL.float()


make.register(texts.Dense, Dense)
make.register(texts.Classifier, Classifier)
