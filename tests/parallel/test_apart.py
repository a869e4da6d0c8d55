"""Experts that are whole on one rank each: ranks compute together what one does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.arch import declare
from sapwood.arch.apart import apart, firsts
from sapwood.arch.shard import shard, weight_map
from sapwood.base.errors import ConfigError
from sapwood.nn.load import load_from
from sapwood.parallel import ALONE, Mesh
from sapwood.quant.base import tensors_by
from sapwood.quant.choice import choice_of, of_whole
from tests import models
from tests.nn import forward
from tests.parallel import meet
from tests.parallel.test_tensor import TOKENS, Made
from tests.quant.test_formats import differ

SAMPLE = "mixtral qwen2-moe deepseek-v3 gpt-oss granite-moe-shared".split()
OTHERS = "qwen3-moe deepseek-v2 olmoe glm4-moe ernie-moe hunyuan-moe phimoe".split()


def together(config: Mapping[str, Any], size: int, *, rounded: str | None = None) -> tuple[Tensor, list[Tensor]]:
    """Logits of one rank and of each of several."""
    decoder = apart(declare(config))
    source, choice = Made(decoder), choice_of(decoder, rounded)

    def logits(mesh: Mesh) -> Tensor:
        local = shard(decoder, rank=mesh.rank, size=mesh.size, tensors=tensors_by(choice))
        assert mesh.size == 1 or any("ffn" in block.parted for block in local.blocks)
        model = forward.empty(local, method=of_whole(choice, local), mesh=mesh)
        load_from(model, source, name="made up")
        return forward.logits(model, TOKENS)

    return logits(ALONE), meet.ranks(size, logits)


@pytest.mark.parametrize("family", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_two_ranks(family: str) -> None:
    alone, ranks = together(models.config(family), 2)
    assert alone.std() > 0.1 and differ(ranks[0], alone) < 1e-5
    assert torch.equal(*ranks), "to the bit"


def test_numbers_that_do_not_divide() -> None:
    """12 experts on 5 ranks."""
    config = models.config("qwen3-moe") | {"num_attention_heads": 5, "num_key_value_heads": 5}
    alone, ranks = together(config, 5)
    assert differ(ranks[0], alone) < 1e-5


def test_weights_that_are_rounded_are_as_of_one_rank() -> None:
    alone, ranks = together(models.config("qwen3-moe"), 2, rounded="int4")
    assert differ(ranks[0], alone) < 1e-4


def test_each_expert_is_whole_and_with_one_rank() -> None:
    decoder = apart(declare(models.config("qwen3-moe")))
    parts = [shard(decoder, rank=rank, size=2) for rank in range(2)]
    names = [{piece.name for piece in weight_map(part) if ".experts." in piece.name} for part in parts]
    assert names[0] and not names[0] & names[1]
    assert names[0] | names[1] == {piece.name for piece in weight_map(decoder) if ".experts." in piece.name}
    whole = {piece.name: piece.shape for piece in weight_map(decoder)}
    for piece in weight_map(parts[1]):
        if ".experts." in piece.name:
            assert tuple(one.stop - one.start for one in piece.source) == whole[piece.name]


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no experts"):
        firsts(declare(models.config("llama")), 2)


def test_where_the_experts_of_each_rank_begin() -> None:
    decoder = declare(models.config("qwen3-moe"))
    assert firsts(decoder, 2) == (0, 6) and firsts(decoder, 5) == (0, 2, 4, 7, 9)
    with pytest.raises(ConfigError, match="does not divide by 13"):
        firsts(decoder, 13)
