"""What ranks get of a model, for every family: together everything, and never part of a head."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.arch import declare
from sapwood.arch.latent import LatentAttention
from sapwood.arch.parts import Decoder, walk
from sapwood.arch.shard import share, weight_map
from sapwood.base.errors import ModelError
from tests import models
from tests.breadth import BREADTH, RENAMED
from tests.recurrent import RECURRENT

FAMILIES = [
    name for name in (*models.MODELS, *BREADTH, *RENAMED) if not name.endswith("-whole")
]  # whose vocabulary is elsewhere


def decoder(family: str) -> Decoder:
    return declare(models.config(family) | {"vocab_size": 200})  # the tiny models' own is odd


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
def test_one_rank_has_everything_once(family: str) -> None:
    model = decoder(family)
    pieces = weight_map(model)
    covered: dict[str, np.ndarray] = {}
    for piece in pieces:
        covered.setdefault(piece.name, np.zeros(piece.shape, int))[piece.source] += 1
    if model.positions is not None:  # nobody is at the places before the first position
        covered[f"{model.positions.name}.weight"][: model.positions.offset] += 1
    assert all((count == 1).all() for count in covered.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_tile_what_is_cut(family: str) -> None:
    """Each element of a cut tensor is with one rank, and what a rank holds of a parameter is filled without gaps."""
    model = decoder(family)
    cut = {
        place.prefix + one.name
        for place in walk(model)
        for one in place.leaf.tensors()
        if one.alone or one.expert or any(axis.unit for axis in one.axes or ())
    }
    shared = any(
        getattr(block.mixer, "num_kv_heads", 2) < 2 for block in model.blocks
    )  # a KV head that both ranks have
    covered: dict[str, np.ndarray] = {}
    for rank in range(2):
        filled: dict[tuple[object, ...], int] = {}
        for piece in weight_map(model, rank=rank, size=2):
            count = covered.setdefault(piece.name, np.zeros(piece.shape, int))
            count[piece.source] += 1
            target = (*piece.target[:-2], *piece.target[-2:][::-1]) if piece.transposed else piece.target
            assert count[piece.source].shape == tuple(s.stop - s.start for s in target[-count.ndim :])
            axis = -1 if piece.param == "bias" else max(-count.ndim, -2)  # of a stack, that of each expert's rows
            key = (piece.path, piece.param, *(one.start for one in piece.target[:axis]))
            first = piece.target[axis]
            assert first.start == filled.get(key, 0)
            filled[key] = first.stop
    for name, count in covered.items():
        if model.positions is not None and name.startswith(model.positions.name):
            count = count[model.positions.offset :]
        if name in cut and shared and "attn" in name.replace("attention", "attn"):
            assert set(np.unique(count)) <= {1, 2}, name
        else:
            assert (count == (1 if name in cut else 2)).all(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 1])
def test_no_head_is_cut(family: str, rank: int) -> None:
    model = decoder(family)
    pieces = [piece for piece in weight_map(model, rank=rank, size=2) if ".mixer." in piece.path]
    cut = 0
    for piece in pieces:
        _, block, _, leaf, *_ = piece.path.split(".")
        mixer = model.blocks[int(block)].mixer
        if isinstance(mixer, LatentAttention):
            dims = {"q": mixer.nope + mixer.kv.rope, "up": mixer.nope + mixer.value, "out": mixer.value}
        else:
            dims = dict.fromkeys(("qkv", "out"), mixer.head_dim)
        if leaf in dims and len(piece.shape) == 2:
            rows, columns = piece.source[::-1] if piece.transposed else piece.source
            edges = (columns.start, columns.stop) if leaf == "out" else (rows.start, rows.stop)
            assert all(edge % dims[leaf] == 0 for edge in edges)
            cut += 1
    assert cut


def test_the_bias_of_a_linear_cut_along_its_input_is_with_one_rank() -> None:
    model = decoder("llama")
    biased = [[p.path for p in weight_map(model, rank=rank, size=2) if p.param == "bias"] for rank in range(2)]
    assert "blocks.0.mixer.out" in biased[0]
    assert "blocks.0.mixer.out" not in biased[1]
    assert "blocks.0.mixer.qkv" in biased[1]


def test_key_heads_are_repeated_when_there_are_fewer_than_ranks() -> None:
    assert [share(2 * 8, 8, rank, 4, name="k_proj") for rank in range(4)] == [slice(0, 8)] * 2 + [slice(8, 16)] * 2
    with pytest.raises(ModelError, match="k_proj"):
        share(3 * 8, 8, 0, 2, name="k_proj")
