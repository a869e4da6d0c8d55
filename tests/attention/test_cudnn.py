"""Prompt chunks by cuDNN: the same outputs as dense attention, whatever else is in the step and in the cache."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from sapwood.attention import cudnn
from tests import kv

GROUP = kv.group(num_layers=2, num_heads=8, num_kv_heads=2, head_dim=64, window=None, page_size=16)


@pytest.fixture
def start(world: Any) -> Any:
    pytest.importorskip("cudnn")
    from sapwood.attention.triton import Triton

    def build(lengths: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[Any, Any]:
        made = world(GROUP, lengths, device=torch.device("cuda"), dtype=dtype, **options)
        backend = made.start(Triton)
        assert backend._cudnn is not None
        return made, backend

    return build


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fresh_spans(start: Any, dtype: torch.dtype) -> None:
    world, backend = start((700, 130, 3, 20), dtype)
    world.step(backend, [(0, 700), (1, 129), (2, 2), (3, 17)], known=True)
    assert backend._by_cudnn
    world.check()


@pytest.mark.gpu
def test_spans_after_others_beside_rows_of_one_token(start: Any) -> None:
    """Cells that nobody wrote hold NaN, and so do those that rows of this step write after a span's end."""
    world, backend = start((900, 700, 40, 19, 33))
    world.step(backend, [(0, 300), (1, 11), (2, 30), (3, 18)], known=True)
    world.step(backend, [(2, 1), (3, 1), (0, 555), (1, 77), (4, 1)], known=True)
    assert backend._by_cudnn
    world.step(backend, [(0, 1), (2, 1), (1, 600), (4, 30)], known=True)
    assert backend._by_cudnn
    world.check()


@pytest.mark.gpu
def test_a_span_with_nan_harms_only_itself(start: Any) -> None:
    world, backend = start((700, 300, 90))
    for tensors in (world.keys, world.values):
        tensors[1][:] = float("nan")
    world.step(backend, [(1, 280), (0, 500), (2, 70)], known=True)
    world.step(backend, [(0, 190), (1, 20), (2, 7)], known=True)
    world.check([0, 2])


@pytest.mark.gpu
def test_pages_that_come_later(start: Any, world: Any) -> None:
    """As at a start: a step is tried with few pages before the rest is allocated."""
    small, backend = start((600,))
    small.step(backend, [(0, 590)], known=True)
    large = world(GROUP, (600, 600, 600), device=small.device, dtype=small.dtype)
    backend.allocate(large.num_pages)
    large.step(backend, [(0, 590), (1, 500), (2, 570)], known=True)
    assert backend._by_cudnn
    large.check()


@pytest.mark.gpu
def test_a_shared_prefix(start: Any) -> None:
    world, backend = start((600, 580, 571), shared=512)
    world.step(backend, [(0, 590)], known=True)
    world.step(backend, [(0, 1), (1, 60), (2, 50)], known=True)
    world.check()


@pytest.mark.gpu
def test_what_it_refuses_triton_computes(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    world, backend = start((700, 20))

    def refuse(*_: Any) -> Any:
        raise RuntimeError("not today")

    backend._cudnn._make = refuse
    world.step(backend, [(0, 600), (1, 10)], known=True)
    assert not backend._by_cudnn
    assert "not today" in caplog.text
    world.step(backend, [(0, 90), (1, 3)], known=True)
    world.check()


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"window": 100}, torch.bfloat16),
        ({"head_dim": 256}, torch.bfloat16),
        ({}, torch.float8_e4m3fn),
        ({}, torch.float32),
    ],
)
def test_groups_that_it_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], dtype: torch.dtype
) -> None:
    library = types.SimpleNamespace(create_handle=lambda: 1)
    monkeypatch.setattr(cudnn, "load", lambda device: library)
    device = torch.device("cpu")
    facts: dict[str, Any] = {"num_layers": 1, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    facts |= {"window": None, "page_size": 16}
    assert cudnn.Cudnn.make(kv.group(**facts), device, torch.bfloat16) is not None
    assert cudnn.Cudnn.make(kv.group(**(facts | changes)), device, dtype) is None


def test_it_is_for_gpus(world: Any) -> None:
    assert cudnn.load(torch.device("cpu")) is None


def test_what_stands_behind_spans_is_zeroed_and_tables_are_whole() -> None:
    """Pages of 16, so that a block of 128 is eight of them; slots end within a page, at its end, and with the table."""
    made = cudnn.Cudnn(types.SimpleNamespace(create_handle=lambda: 1), GROUP, torch.device("cpu"), torch.bfloat16)  # type: ignore[arg-type]
    table_NP = torch.tensor([[3, 4, 9], [5, 9, 9], [6, 7, 8]], dtype=torch.int32)
    ends_N = torch.tensor([20, 16, 47], dtype=torch.int32)
    values = torch.full((2, 10, 2, 16, 4), torch.nan)
    made._clean(values, table_NP, ends_N)
    zeroed = (values == 0).all(-1).all(2).all(0)  # [page, cell]
    assert zeroed[4].tolist() == [False] * 4 + [True] * 12
    assert zeroed[8].tolist() == [False] * 15 + [True]
    assert not zeroed[[3, 5, 6, 7, 9]].any()
    whole_NP = made._whole(table_NP, ends_N)
    assert whole_NP.tolist() == [[3, 4] + [3] * 6, [5] * 8, [6, 7, 8] + [6] * 5]
