"""Ranks that compute a model together compute what one does, whatever it is made of."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.arch import Decoder, declare
from sapwood.arch.shard import Piece, shard, weight_map
from sapwood.nn.load import load_from
from sapwood.parallel import ALONE, Mesh
from tests import models
from tests.breadth import BREADTH, RENAMED
from tests.nn import forward
from tests.parallel import meet
from tests.recurrent import RECURRENT

TOKENS = np.random.default_rng(0).integers(3, 199, size=40).tolist()
SAMPLE = """
    llama llama-tied gemma3 qwen2-moe deepseek-v3 olmo2 stablelm-parallel gpt2 falcon-7b bloom gemma4 lfm2 mamba2 qwen3-next granite-moe-shared
""".split()
"""Which together have all that is cut in ways of its own."""
OTHERS = [name for name in (*models.MODELS, *BREADTH, *RENAMED, *RECURRENT) if name not in SAMPLE]


class Made:
    """A plain checkpoint of random numbers, the same for the same names."""

    def __init__(self, decoder: Decoder) -> None:
        self._shapes = {piece.name: piece.shape for piece in weight_map(decoder) if piece.shape is not None}
        self._tensors: dict[str, Tensor] = {}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        if name not in self._tensors:
            random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            made = torch.randn(self._shapes[name], generator=random)
            made = 1 + made / 10 if "norm" in name else made / 8
            self._tensors[name] = (
                made / 16 if "q_norm" in name else made
            )  # or one key would win, and rounding decide which
        return self._tensors[name][where]

    def stored(self, name: str, rows: slice) -> None:
        return None

    def expect(self, pieces: Sequence[Piece], *, pinned: bool) -> int:
        return 0

    def release(self, name: str) -> int:
        return 0


def logits(decoder: Decoder, source: Made, mesh: Mesh = ALONE) -> Tensor:
    local = shard(decoder, rank=mesh.rank, size=mesh.size)
    model = forward.empty(local, mesh=mesh)
    load_from(model, source, name="made up")
    return forward.logits(model, TOKENS)


def check(config: Mapping[str, Any], size: int = 2) -> None:
    decoder = declare(config)
    source = Made(decoder)
    alone, together = logits(decoder, source), meet.ranks(size, lambda mesh: logits(decoder, source, mesh))
    assert alone.std() > 0.1, "logits this flat would hide differences"
    assert (together[0] - alone).abs().max() < 1e-5 * max(1.0, float(alone.abs().max()))
    assert all(torch.equal(one, together[0]) for one in together), "to the bit"


@pytest.mark.parametrize("family", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_two_ranks(family: str) -> None:
    check(models.config(family))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size"), [(9, 3, 2), (5, 1, 2), (8, 2, 4), (6, 2, 4), (6, 3, 4), (12, 3, 3)]
)
def test_odd_numbers_of_heads(num_heads: int, num_kv_heads: int, size: int) -> None:
    odd = {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "intermediate_size": 97}
    check(models.config("llama") | odd, size)
