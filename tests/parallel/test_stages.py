"""Stages that compute a model one behind the other compute what one rank does."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.arch import declare
from sapwood.arch.groups import kv_groups
from sapwood.arch.parts import Decoder
from sapwood.arch.shard import shard, weight_map
from sapwood.arch.stages import stage
from sapwood.base.errors import ConfigError
from sapwood.device.cpu import Cpu
from sapwood.nn.load import load_from
from sapwood.parallel.joined import joined
from sapwood.parallel.pipe import CollectivePipe, SharedPipe
from sapwood.parallel.segment import Segment
from sapwood.parallel.ways import Pipe
from tests import models
from tests.breadth import BREADTH, RENAMED
from tests.nn import forward
from tests.parallel import meet
from tests.parallel.test_tensor import TOKENS, Made, logits
from tests.recurrent import RECURRENT

SAMPLE = "llama llama-tied qwen2-moe deepseek-v3 stablelm-parallel gpt2 bloom mamba2".split()
OTHERS = [name for name in (*models.MODELS, *BREADTH, *RENAMED, *RECURRENT) if name not in SAMPLE]


def computed(decoder: Decoder, source: Made, segment: Segment, width: int) -> Tensor:
    mesh, pipe = joined(segment, Cpu(), width)
    part = stage(decoder, pipe.number, pipe.count)
    assert isinstance(part, Decoder)
    local = shard(part, rank=mesh.rank, size=mesh.size)
    model = forward.empty(local, mesh=mesh, pipe=pipe)
    load_from(model, source, name="made up")
    return forward.logits(model, TOKENS)


def check(config: Mapping[str, Any], *, size: int = 2, width: int = 1) -> None:
    decoder = declare(config)
    source = Made(decoder)
    alone = logits(decoder, source)
    found = meet.segments(size, lambda segment: computed(decoder, source, segment, width))[-width:]
    assert alone.std() > 0.1, "logits this flat would hide differences"
    for one in found:
        assert (one - alone).abs().max() < 1e-5 * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize("family", SAMPLE)
def test_two_stages(family: str) -> None:
    check(models.config(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_two_stages_or_why_not(family: str) -> None:
    decoder = declare(models.config(family))
    try:
        stage(decoder, 0, 2)
    except ConfigError as error:
        pytest.skip(str(error))
    check(models.config(family))


@pytest.mark.parametrize(("layers", "size", "width"), [(5, 3, 1), (4, 4, 1), (3, 4, 2)])
def test_layers_that_do_not_divide_and_stages_of_two_ranks(layers: int, size: int, width: int) -> None:
    check(models.config("llama") | {"num_hidden_layers": layers}, size=size, width=width)


def test_each_has_its_layers_and_the_ends() -> None:
    decoder = declare(models.config("llama-tied") | {"num_hidden_layers": 5})
    stages = [stage(decoder, number, 3) for number in range(3)]
    assert [len(one.blocks) for one in stages] == [2, 2, 1]
    names = [{piece.name for piece in weight_map(one)} for one in stages]
    assert set().union(*names) == {piece.name for piece in weight_map(decoder)}
    assert names[0] & names[2] == {"model.embed_tokens.weight"}, "which is the head too"
    assert "model.layers.4.mlp.down_proj.weight" in names[2] and "model.norm.weight" in names[2]
    assert not names[0] & names[1]


def test_groups_are_in_the_order_of_the_whole() -> None:
    """Though the first layer of a stage is of another kind than the whole's first."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    config = models.config("gemma3") | {"num_hidden_layers": 4, "layer_types": kinds}
    decoder = declare(config)
    whole = [group.kind for group in kv_groups(decoder, 8)]
    for number in range(2):
        groups = kv_groups(stage(decoder, number, 2), 8)
        assert [group.kind for group in groups] == whole and [group.num_layers for group in groups] == [1, 1]
    check(config)


@pytest.mark.parametrize(
    ("config", "count", "says"),
    [
        (models.config("llama") | {"num_hidden_layers": 2}, 3, "has 2 layers only"),
        (
            models.config("gemma3")
            | {
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            },
            2,
            "no layer of one of the kinds",
        ),
    ],
)
def test_what_is_not_taken_apart(config: Mapping[str, Any], count: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stage(declare(config), 0, count)


SIZES = [(1, 3), (700, 401), (0, 5), (2000, 300)]


def passed(pipe: Pipe) -> list[Tensor]:
    """States of several sizes, each a third larger behind every stage."""
    found = []
    for size in SIZES:
        random = torch.Generator().manual_seed(size[0])
        x_TE = torch.randn(size, generator=random) if pipe.number == 0 else pipe.take(torch.empty(size)) * 1.5
        if pipe.number < pipe.count - 1:
            pipe.give(x_TE)
        found.append(x_TE)
    return found


def right(found: list[list[Tensor]]) -> None:
    for number, states in enumerate(found):
        for first, one in zip(found[0], states, strict=True):
            assert torch.allclose(first * 1.5**number, one)


def test_memory_that_all_share() -> None:
    assert 700 * 401 * 4 > 1 << 20, "more than a box holds"
    right(meet.segments(3, lambda segment: passed(SharedPipe(segment, 1))))


def test_gloo(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        pipes = lambda rank: passed(CollectivePipe("gloo", tmp_path / "store", rank, 3, 1))  # noqa: E731
        right(list(pool.map(pipes, range(3))))
