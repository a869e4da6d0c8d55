"""Checkpoints that other tools have made, cut at their groups: two ranks compute what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sapwood.arch import declare
from sapwood.arch.shard import shard
from sapwood.hub.files import open_files
from sapwood.nn.load import load_from, load_weights
from sapwood.parallel import ALONE, Mesh
from sapwood.quant import methods
from sapwood.quant.base import everywhere, tensors_by
from sapwood.quant.choice import choice_of, of_whole
from sapwood.quant.methods import METHODS
from sapwood.quant.plain import Plain
from tests import models
from tests.nn import forward
from tests.parallel import meet
from tests.parallel.test_tensor import Made
from tests.quant.test_formats import CHECKPOINTS, differ, unrounded

WHOLE = {"bnb-fp4", "bnb-nf4", "bnb-nf4-double", "gptq-act-order", "gptq-asym", "torchao-fp8", "torchao-int8"}
"""Whose tensors do not say what belongs to which inputs or outputs."""
ONE_GROUP = {"fp8-block", "w4a16", "w4a16-asym", "w8a16"}
"""Which are so small that all inputs are one group."""


def loaded(path: Path, mesh: Mesh = ALONE) -> Any:
    files = open_files(path, name=path.name)
    decoder = declare(files.config, methods=METHODS)
    choice = methods.of(decoder.quantization, everywhere(Plain()))
    local = shard(decoder, rank=mesh.rank, size=mesh.size, tensors=tensors_by(choice))
    model = forward.empty(local, method=choice, mesh=mesh)
    load_weights(model, files)
    return unrounded(model)


@pytest.mark.parametrize(("scheme", "most"), [("int4", 1e-5), ("int8", 0.02), ("fp8", 0.1), ("nvfp4", 0.3)])
def test_plain_weights_that_are_rounded(scheme: str, most: float) -> None:
    """By groups of inputs as they are with one rank; where rows or whole tensors have a scale, a rank's part has its own."""
    decoder = declare(models.config("llama") | {"head_dim": 16})
    source, tokens = Made(decoder), list(range(3, 40))
    choice = choice_of(decoder, scheme)

    def logits(mesh: Mesh) -> Tensor:
        local = shard(decoder, rank=mesh.rank, size=mesh.size, tensors=tensors_by(choice))
        assert mesh.size == 1 or local.blocks[0].parted == ("mixer", "ffn")
        model = forward.empty(local, method=of_whole(choice, local), mesh=mesh)
        load_from(model, source, name="made up")
        return forward.logits(unrounded(model), tokens)

    alone, ranks = logits(ALONE), meet.ranks(2, logits)
    assert torch.equal(*ranks)
    assert differ(ranks[0], alone) < most


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKPOINTS.glob("*/")))
def test_two_ranks(name: str) -> None:
    path = CHECKPOINTS / name
    tokens = load_file(path / "logits.safetensors")["tokens"].tolist()

    def logits(mesh: Mesh) -> tuple[Tensor, set[str]]:
        model = loaded(path, mesh)
        return forward.logits(model, tokens), {half for block in model.decoder.blocks for half in block.parted}

    alone, ranks = forward.logits(loaded(path), tokens), meet.ranks(2, logits)
    assert differ(ranks[0][0], alone) < 1e-5
    assert torch.equal(ranks[0][0], ranks[1][0])
    assert ranks[0][1] == (set() if name in WHOLE | ONE_GROUP else {"mixer", "ffn"})
