"""The list of operations that the CPU's library runs: made from parts, also from parts made up here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from sapwood.arch import Decoder, declare, parts
from sapwood.kernels import RmsNorm
from sapwood.nn.load import dummy_weights
from sapwood.nn.make import Site, make
from sapwood.nn.stack import Operation, Spot, listing, operations, unlisted
from tests import models
from tests.nn import forward, native

TOKENS = np.random.default_rng(3).integers(3, 199, size=40).tolist()


@dataclass(frozen=True)
class Straight:
    """One product: as a mixer it lets no tokens see each other, and keeps nothing."""

    out: parts.Linear

    @property
    def kv(self) -> None:
        return None


class StraightModule(nn.Module):
    def __init__(self, part: Straight, site: Site) -> None:
        super().__init__()
        self.out = site.make("out", part.out)

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm, *_: object) -> tuple[Tensor, Tensor]:
        return self.out.normed(x_TE, residual_TE, norm)


@dataclass(frozen=True)
class Unknown:
    """Nobody has said what its operations are."""

    out: parts.Linear
    kv: None = None


make.register(Straight, StraightModule)


@operations.register
def _(part: Straight, spot: Spot) -> Iterator[Operation]:
    yield spot.yields("out")


def with_straight(family: str, kind: Callable[[parts.Linear], Any] = Straight) -> Decoder:
    """In the first block a mixer that keeps nothing, in the last a feed-forward of one product."""
    decoder = declare(models.config(family))
    size = decoder.hidden_size
    straight = kind(parts.Linear(size, (parts.Part("straight", size),), None))
    first, *others, last = decoder.blocks
    return replace(decoder, blocks=(replace(first, mixer=straight), *others, replace(last, ffn=straight)))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_new_block_is_a_new_list(family: str) -> None:
    """Alone, and with norms after mixers and feed-forwards."""
    decoder = with_straight(family)
    model, twin = native.empty(decoder, native.machine()), forward.empty(decoder)
    for one in (model, twin):
        dummy_weights(one, 7)
    expected = forward.logits(twin, TOKENS)
    for cuts in ([], [1, 2, 33]):
        assert (native.logits(model, TOKENS, cuts) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_block_is_seven_operations(family: str) -> None:
    model = native.empty(declare(models.config(family)), native.machine())
    dummy_weights(model, 0)
    names = [name for name, _ in listing(model.decoder, model.weights)]
    block = ["norm", "project", "attend", "project", "norm", "gate", "project"]
    assert names == ["embed", *block * len(model.decoder.blocks), "finish"]


def test_a_part_without_operations_is_named() -> None:
    assert unlisted(with_straight("llama")) is None
    assert unlisted(with_straight("llama", Unknown)) == "Unknown"
