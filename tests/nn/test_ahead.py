"""Reading ahead: what comes is what is in the files, in order, in as much memory as is meant."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.nn import ahead
from sapwood.nn.ahead import Ahead, Span, Wanted
from sapwood.nn.checkpoint import Safetensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bytes"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(ahead, "_RING_BYTES", 8192)


@pytest.mark.parametrize("seed", range(8))
def test_spans_of_all_sizes_come_in_order_and_stay_until_they_are_released(seed: int, file: Path, small: None) -> None:
    """Through a ring that holds a few of them, and around it where they are larger."""
    rng, data = random.Random(seed), file.read_bytes()
    wanted = []
    for number in range(60):
        size = rng.choice([0, 1, 63, 64, 1000, 3000, 8192, 8193, 20_000])
        start = rng.randrange(len(data) - size)
        wanted.append(Wanted(str(number), Span(file, start, start + size), times=rng.choice([1, 1, 3])))
    with Ahead(wanted) as reading:
        for one in wanted:
            for time in range(one.times):
                assert reading.now == one
                if rng.random() < 0.8:  # it may be left out
                    assert bytes(reading.take().numpy()) == data[one.span.start : one.span.stop]
                assert reading.release() == (one.span.size if time == one.times - 1 else 0)
        assert reading.now is None


def test_no_more_is_read_ahead_than_the_ring_holds(file: Path, small: None) -> None:
    with Ahead([Wanted(str(i), Span(file, i, i + 4000)) for i in range(20)]) as reading:
        reading.take()
        assert len(reading._places) <= 2
        reading.release()
        reading.take()
        assert len(reading._places) <= 2  # and it is left before all of it has come


def test_a_file_that_ends_early_or_is_not_there_is_named(file: Path, tmp_path: Path) -> None:
    with Ahead([Wanted("x", Span(file, 99_000, 101_000))]) as reading, pytest.raises(ModelError, match="bytes ends at"):
        reading.take()
    with pytest.raises(ModelError, match="none cannot be read: No such file"):
        ahead.read(Span(tmp_path / "none", 0, 10))


def piece(name: str, *where: slice) -> Piece:
    return Piece("", "weight", name, None, where, where)


def test_only_what_is_wanted_of_a_tensor_is_read(tmp_path: Path) -> None:
    """Rows of it, or rows of some of its entries; of columns the whole rows, and of what all pieces have together all at once."""
    x, y = torch.arange(24.0).view(6, 4), torch.arange(48, dtype=torch.int16).view(2, 6, 4)
    save_file({"x": x, "y": y, "z": torch.ones(()), "e": torch.ones(0, 3)}, tmp_path / "f")
    rows, columns, entry = slice(2, 4), slice(1, 3), slice(1, 2)
    cases = [
        ([piece("x", rows)], [x[rows]], 32),
        ([piece("x", slice(0, 6), columns)], [x[:, columns]], 96),
        ([piece("y", entry, rows, columns)], [y[entry, rows, columns]], 16),
        ([piece("x", slice(0, 1)), piece("x", slice(3, 6))], [x[:1], x[3:]], 64),
        ([piece("x", slice(0, 6), slice(0, 2)), piece("x", slice(0, 6), slice(2, 4))], [x[:, :2], x[:, 2:]], 96),
        ([piece("x", slice(3, 6)), piece("x", slice(0, 3)), piece("z")], [x[3:], x[:3], torch.ones(())], 100),
        ([piece("e", slice(0, 0), slice(0, 3)), piece("y")], [torch.ones(0, 3), y], 96),
    ]
    for pieces, values, size in cases:
        with ExitStack() as stack:
            source = Safetensors([tmp_path / "f"], stack)
            assert source.expect(pieces, pinned=False) == size
            freed = 0
            for one, value in zip(pieces, values, strict=True):
                assert torch.equal(source.read(one.name, one.source), value)
                freed += source.release(one.name)
            assert freed == size


def test_what_is_not_expected_is_read_all_the_same(tmp_path: Path) -> None:
    x = torch.arange(24.0).view(6, 4)
    save_file({"x": x, "y": x + 1}, tmp_path / "f")
    with ExitStack() as stack:
        source = Safetensors([tmp_path / "f"], stack)
        source.expect([piece("x", slice(0, 3))], pinned=False)
        assert torch.equal(source.read("y", (slice(4, 6),)), x[4:] + 1)
        assert torch.equal(source.read("x", (slice(2, 5),)), x[2:5])
        assert torch.equal(source.read("x", (slice(1, 3), slice(0, 1))), x[1:3, :1])


def test_tensors_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,2]}}'
    )
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with ExitStack() as stack:
        source = Safetensors([tmp_path / "f"], stack)
        with pytest.raises(ModelError, match="holds a as F4"):
            source.read("a", ())
        with pytest.raises(ModelError, match="damaged: b has 2 bytes"):
            source.read("b", ())
