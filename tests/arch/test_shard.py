"""What ranks get of a model, for every family: together everything, and never part of a head."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.arch import declare
from sapwood.arch.experts import Stack
from sapwood.arch.parts import Decoder, Linear, walk
from sapwood.arch.shard import share, weight_map
from sapwood.base.errors import ModelError
from tests import models


def decoder(family: str) -> Decoder:
    return declare(models.config(family) | {"vocab_size": 200})  # the tiny models' own is odd


@pytest.mark.parametrize("family", list(models.MODELS))
def test_one_rank_has_everything_once(family: str) -> None:
    pieces = weight_map(decoder(family))
    covered: dict[str, np.ndarray] = {}
    for piece in pieces:
        covered.setdefault(piece.name, np.zeros(piece.shape, int))[piece.source] += 1
    assert all((count == 1).all() for count in covered.values())


@pytest.mark.parametrize("family", list(models.MODELS))
def test_two_ranks_tile_what_is_cut(family: str) -> None:
    """Each element of a cut tensor is with one rank, and what a rank holds of a parameter is filled without gaps."""
    model = decoder(family)
    cut = {place.path: place.leaf.split for place in walk(model) if isinstance(place.leaf, Linear)}
    cut |= {place.path: "experts" for place in walk(model) if isinstance(place.leaf, Stack)}
    covered: dict[str, np.ndarray] = {}
    for rank in range(2):
        filled: dict[tuple[object, ...], int] = {}
        for piece in weight_map(model, rank=rank, size=2):
            count = covered.setdefault(piece.name, np.zeros(piece.shape, int))
            count[piece.source] += 1
            assert count[piece.source].shape == tuple(s.stop - s.start for s in piece.target[-count.ndim :])
            key = (piece.path, piece.param, *(one.start for one in piece.target[: -count.ndim]))
            first = piece.target[-count.ndim]
            assert first.start == filled.get(key, 0)
            filled[key] = first.stop
    paths = {piece.name: piece.path for piece in weight_map(model)}
    for name, count in covered.items():
        path = paths[name]
        halved = path == "embed" or cut.get(path) is not None
        assert (count == (1 if halved else 2)).all(), name


@pytest.mark.parametrize("family", list(models.MODELS))
@pytest.mark.parametrize("rank", [0, 1])
def test_no_head_is_cut(family: str, rank: int) -> None:
    model = decoder(family)
    dim = model.blocks[0].mixer.head_dim
    pieces = [p for p in weight_map(model, rank=rank, size=2) if p.path.endswith((".qkv", ".out"))]
    assert pieces
    for piece in pieces:
        if len(piece.shape) == 2:
            rows, columns = piece.source
            edges = (columns.start, columns.stop) if piece.path.endswith(".out") else (rows.start, rows.stop)
            assert all(edge % dim == 0 for edge in edges)


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
