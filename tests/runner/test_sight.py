"""What the device knows of media: results in their rows, and what stands at each token of a padded step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.arch import declare
from sapwood.attention.base import Seen
from sapwood.base.media import Media
from sapwood.base.plan import Embed, Encode, Seat, Stretch
from sapwood.config.flags import from_options
from sapwood.device import find
from sapwood.hub.files import open_files
from sapwood.runner.sight import Sight
from tests import seeing


class Numbered:
    """An encoder whose vectors say whose they are, and which."""

    def encode(self, media: Sequence[Media]) -> list[Tensor]:
        return [torch.arange(one.length)[:, None].expand(-1, 64) + 100.0 * one.digest[0] for one in media]


def sight_for(family: str, path: Path, *, always: bool) -> Sight:
    decoder: Any = declare(open_files(seeing.save(family, path), name=family).config)
    config = from_options({"model": str(path), "dtype": "float32", "max_model_len": 40})
    made = Sight(Numbered(), decoder, config, num_slots=3, max_len=40, device=find("cpu"))
    made._always = always
    return made


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_what_stands_where(tmp_path: Path) -> None:
    sight = sight_for("qwen2-vl", tmp_path, always=True)
    media = [named(4, 1), named(2, 2)]
    sight.encode(Encode(tuple(media), (ints(3, 9, 4, 1), ints(2, 7))))
    assert sight.vectors_MW[[3, 9, 4, 1], 0].tolist() == [100, 101, 102, 103]
    assert sight.vectors_MW[[2, 7], 0].tolist() == [200, 201]
    turns = np.arange(18, dtype=np.int32).reshape(3, 6)
    sight.embed(
        Embed((Seat(0, 6, turns, -3), Seat(1, 0, None, 0)), (Stretch(0, 1, ints(3, 9)), Stretch(0, 4, ints(7))))
    )
    # Slot 0 feeds positions 0 to 6, slot 1 position 8; a row and two tokens are padding.
    slots, offsets = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([0, 7, 8, 8], dtype=torch.int32)
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 0, 0])
    seen = sight.of(slots, offsets, positions)
    assert seen is not None and seen.rows_T.tolist() == [0, 3, 9, 0, 7, 0, 0, 0, 0, 0]
    assert seen.turns_3T is not None
    assert seen.turns_3T[:, :8].tolist() == [[row * 6 + at + at for at in range(6)] + [3, 8] for row in range(3)]
    own = torch.full((10, 64), -1.0)
    assert seen.among(own)[:, 0].tolist() == [-1, 100, 101, -1, 201, -1, -1, -1, -1, -1]


def test_levels_lie_behind_each_other() -> None:
    vectors = torch.arange(12.0).view(2, 6) * torch.tensor([[0.0], [1.0]])
    seen = Seen(torch.tensor([0, 1]), vectors, None, levels=2)
    x = torch.ones(2, 2)
    assert seen.among(x).tolist() == [[1, 1], [6, 7]]
    assert [seen.behind(layer, x)[1].tolist() for layer in range(3)] == [[9, 10], [11, 12], [1, 1]]
    assert seen.behind(0, x)[0].tolist() == [1, 1], "nothing stands there"


def test_a_slot_that_changes_hands(tmp_path: Path) -> None:
    """Of its last tenant nothing stands there any more; without media anywhere nobody looks, but where steps are graphs."""
    sight = sight_for("llava", tmp_path, always=False)
    where = torch.tensor([0], dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32), torch.arange(4)
    assert sight.of(*where) is None
    sight.embed(Embed((Seat(0, 4, None, 0),), (Stretch(0, 1, ints(5, 6)),)))
    seen = sight.of(*where)
    assert seen is not None and seen.rows_T.tolist() == [0, 5, 6, 0] and seen.turns_3T is None
    sight.embed(Embed((Seat(0, 3, None, 0),), (Stretch(0, 2, ints(8)),)))
    seen = sight.of(*where)
    assert seen is not None and seen.rows_T.tolist() == [0, 0, 8, 0]
    sight.embed(Embed((Seat(0, 0, None, 0),), ()))
    assert sight.of(*where) is None
    sight._always = True
    seen = sight.of(*where)
    assert seen is not None and not seen.rows_T.any()


def test_the_largest_image_is_encoded(tmp_path: Path) -> None:
    """By the real tower, of every kind, within what a sequence holds."""
    for family in ("llava", "smolvlm", "qwen2.5-vl", "qwen3-vl"):
        path = tmp_path / family
        decoder: Any = declare(open_files(seeing.save(family, path), name=family).config)
        shape, length = decoder.encoder.largest(40)
        assert length <= 40 and shape[1] == 3
        sight = sight_for(family, path, always=False)
        asked: list[tuple[tuple[int, ...], int]] = []
        sight._encoder = Recorder(asked)
        sight.encode_largest()
        assert asked and set(asked) == {(shape, length)}


@dataclasses.dataclass
class Recorder:
    asked: list[tuple[tuple[int, ...], int]]

    def encode(self, media: Sequence[Media]) -> list[Tensor]:
        self.asked += [(one.arrays["pixels"].shape, one.length) for one in media]
        return []


def named(length: int, first: int) -> Media:
    """One whose digest begins so."""
    return Media("image", bytes((first,)) + bytes(15), {}, length)
