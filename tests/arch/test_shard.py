"""What ranks get of a model, for every family: together everything, and never part of a head."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sapwood.arch import declare
from sapwood.arch.latent import LatentAttention
from sapwood.arch.parts import Decoder, Place, StoredTensor, walk
from sapwood.arch.shard import shard, weight_map, widths
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


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_tile_what_is_cut(family: str, size: int) -> None:
    """Each element of a tensor is somewhere, of one that counts once with one rank, and what a rank holds of a parameter is filled
    without gaps."""
    model = decoder(family)
    ranks = [shard(model, rank=rank, size=size) for rank in range(size)]
    covered: dict[str, np.ndarray] = {}
    for local in ranks:
        filled: dict[tuple[object, ...], int] = {}
        for piece in weight_map(local):
            count = covered.setdefault(piece.name, np.zeros(piece.shape, int))
            count[piece.source] += 1
            target = (*piece.target[:-2], *piece.target[-2:][::-1]) if piece.transposed else piece.target
            assert count[piece.source].shape == tuple(s.stop - s.start for s in target[-count.ndim :])
            axis = -1 if piece.param == "bias" else max(-count.ndim, -2)  # of a stack, that of each expert's rows
            key = (piece.path, piece.param, *(one.start for one in piece.target[:axis]))
            first = piece.target[axis]
            assert first.start == filled.get(key, 0)
            filled[key] = first.stop
    once = {place.prefix + tensor.name for place, tensor in _once(ranks[0])}
    for name, count in covered.items():
        if model.positions is not None and name.startswith(model.positions.name):
            count = count[model.positions.offset :]
        assert (count == 1).all() if name in once else (count >= 1).all(), name


def _once(local: Decoder) -> Iterator[tuple[Place, StoredTensor]]:
    """What is cut along an axis of which no two ranks may have the same."""
    assert local.portion is not None
    whole, shares = local.portion
    for place in walk(whole):
        if any(place.path == path or place.path.startswith(f"{path}.") for path in shares):
            for tensor in place.leaf.tensors():
                if any(axis.once and axis.unit is not None for axis in tensor.axes or ()):
                    yield place, tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 1])
def test_no_head_is_cut(family: str, rank: int) -> None:
    model = decoder(family)
    pieces = [piece for piece in weight_map(shard(model, rank=rank, size=2)) if ".mixer." in piece.path]
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
    ranks = [shard(decoder("llama"), rank=rank, size=2) for rank in range(2)]
    biased = [[p.path for p in weight_map(local) if p.param == "bias"] for local in ranks]
    assert "blocks.0.mixer.out" in biased[0]
    assert "blocks.0.mixer.out" not in biased[1]
    assert "blocks.0.mixer.qkv" in biased[1]
    assert [local.blocks[0].mixer.out.bias for local in ranks] == [True, False]


def heads(num_heads: int, num_kv_heads: int, size: int) -> list[tuple[int, int]]:
    """Of queries and of keys, of each rank; nothing where attention is not cut."""
    config = models.config("llama") | {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads}
    ranks = [shard(declare(config), rank=rank, size=size) for rank in range(size)]
    found = [local.blocks[0].mixer for local in ranks if "mixer" in local.blocks[0].parted]
    return [(mixer.num_heads, mixer.num_kv_heads) for mixer in found]


def test_heads_are_shared_with_the_key_that_they_read() -> None:
    assert heads(8, 4, 2) == [(4, 2)] * 2
    assert heads(9, 3, 2) == [(3, 1), (6, 2)], "as evenly as whole groups allow"
    assert heads(8, 2, 4) == [(2, 1)] * 4, "neighbours have the same key"
    assert heads(6, 2, 4) == [(1, 1), (2, 1)] * 2
    assert heads(5, 1, 2) == [(2, 1), (3, 1)]
    assert heads(6, 3, 4) == [], "a rank's queries would read keys of two, and part of them"
    assert heads(2, 2, 4) == []


def test_what_cannot_be_cut_is_whole_everywhere() -> None:
    whole = decoder("olmo2")
    local = shard(whole, rank=1, size=2)
    assert local.blocks[0].mixer == whole.blocks[0].mixer, "its norm is of all heads together"
    assert local.blocks[0].parted == ("ffn",)


def test_odd_vocabularies_are_shared_by_whole_rows() -> None:
    model = declare(models.config("llama") | {"vocab_size": 49153})
    ranks = [shard(model, rank=rank, size=2) for rank in range(2)]
    assert widths(ranks[1]) == (24576, 24577)
    assert [(local.embed.first, local.embed.vocab_size) for local in ranks] == [(0, 24576), (24576, 24577)]
    assert ranks[1].vocab_size == 49153
