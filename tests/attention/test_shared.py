"""Runs of pages that several rows share, against dense attention of each row by itself."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sapwood.attention.base import Backend
from sapwood.attention.cpu import Cpu
from sapwood.attention.reference import Reference
from tests import kv

Start = Callable[..., tuple[Any, Backend]]
PAGE = 8


@pytest.fixture(params=["reference", "cpu", "triton-interpreted", pytest.param("triton-gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> tuple[type[Backend], torch.device]:
    if request.param in ("reference", "cpu"):
        return {"reference": Reference, "cpu": Cpu}[request.param], torch.device("cpu")
    if request.param == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    pytest.importorskip("triton")
    from sapwood.attention.triton import Triton

    return Triton, torch.device("cuda" if request.param == "triton-gpu" else "cpu")


@pytest.fixture
def start(backend: tuple[type[Backend], torch.device], world: Any) -> Start:
    """start(lengths, runs, **changes of the group) -> (world with all but two tokens of each slot fed, backend)"""

    def build(lengths: tuple[int, ...], runs: list[Any], **changes: Any) -> tuple[Any, Backend]:
        facts = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "window": None, "page_size": PAGE}
        made = world(kv.group(**(facts | changes)), lengths, device=backend[1])
        for run in runs:
            made.share(run)
        under_test = made.start(backend[0])
        made.feed(under_test, [(slot, length - 2) for slot, length in enumerate(lengths)])
        return made, under_test

    return build


@pytest.mark.parametrize("num_members", [2, 15, 16, 17, 40])
def test_members(start: Start, run: Any, num_members: int) -> None:
    """From two rows to several tiles of them, over a run that ends inside a block."""
    runs = [run(0, 3 * PAGE, tuple(range(num_members)))]
    world, backend = start(tuple(27 + slot % 9 for slot in range(num_members)), runs)
    world.step(backend, [(slot, 1) for slot in range(num_members)], runs=runs)
    world.check()


@pytest.mark.parametrize("bent", [{"cap": 0.5, "slopes": (0.2, 0.01)}, {"sinks": True}], ids="-".join)
def test_bent_scores(start: Start, run: Any, bent: dict[str, Any]) -> None:
    """Capped, and falling with the distance of each member; beside a sink, which each query has once."""
    runs = [run(0, 3 * PAGE, tuple(range(17)))]
    world, backend = start(tuple(27 + slot % 9 for slot in range(17)), runs, **bent)
    world.step(backend, [(slot, 1) for slot in range(17)], runs=runs)
    world.check()


@pytest.mark.parametrize("repeat", [1, 2, 4, 7, 8])
def test_heads(start: Start, run: Any, repeat: int) -> None:
    runs = [run(0, 2 * PAGE, (0, 2, 1))]
    world, backend = start((40, 20, 19), runs, num_heads=2 * repeat, num_kv_heads=2, num_layers=2)
    world.step(backend, [(slot, 1) for slot in (1, 2, 0)], runs=runs)
    world.check()


def test_levels(start: Start, run: Any) -> None:
    """A tree: a common root, branches, twigs and leaves; rows in another order, some of them in no run."""
    runs = [
        run(0, PAGE, (0, 1, 2, 3, 4)),
        run(PAGE, 4 * PAGE, (0, 1, 2)),
        run(PAGE, 2 * PAGE, (3, 4)),
        run(4 * PAGE, 5 * PAGE, (1, 2)),
        run(5 * PAGE, 8 * PAGE, (2, 1)),
    ]
    world, backend = start((43, 70, 90, 18, 41, 12), runs)
    world.step(backend, [(slot, 1) for slot in (5, 2, 4, 0, 3, 1)], runs=runs)
    world.check()


def test_runs_of_long_positions_are_cut_into_parts(start: Start, run: Any) -> None:
    runs = [run(0, 30 * PAGE, (0, 1)), run(0, PAGE, (2, 3))]
    world, backend = start((30 * PAGE + 2, 30 * PAGE + 9, 11, 60), runs)
    for _ in range(2):
        world.step(backend, [(slot, 1) for slot in range(4)], runs=runs)
    world.check()


def test_a_private_part_of_one_token(start: Start, run: Any) -> None:
    """The run ends where the row starts."""
    runs = [run(0, 2 * PAGE, (0, 1))]
    world, backend = start((2 * PAGE + 2, 2 * PAGE + 2), runs)
    world.step(backend, [(0, 1), (1, 1)], runs=runs)
    world.check()


def test_padded_and_mixed_with_spans(start: Start, run: Any) -> None:
    runs = [run(0, 2 * PAGE, (0, 1, 2))]
    world, backend = start((30, 20, 25, 40, 9), runs)
    world.fed[3] = 20
    world.step(backend, [(2, 1), (0, 1), (1, 1), (4, 1), (3, 12)], runs=runs, padding=3, no_rows=2)
    world.check()


def test_a_window_does_not_heed_runs(start: Start, run: Any) -> None:
    runs = [run(0, 2 * PAGE, (0, 1))]
    world, backend = start((34, 30), runs, window=20)
    world.step(backend, [(0, 1), (1, 1)], runs=runs)
    world.check()


def test_a_member_with_nan_harms_only_itself(start: Start, run: Any) -> None:
    runs = [run(0, 2 * PAGE, (0, 1, 2))]
    world, backend = start((30, 20, 25), runs)
    world.queries[1][:] = float("nan")
    with warnings.catch_warnings(action="ignore"):  # the interpreter's, of NaN
        world.step(backend, [(0, 1), (1, 1), (2, 1)], runs=runs)
    world.check([0, 2])
    assert world.outputs[1][18].isnan().all()


def test_a_run_is_read_through_one_member(start: Start, run: Any, backend: Any) -> None:
    """Whatever the tables of the others say: its keys and values are read once for all."""
    if backend[0].name != "triton":
        pytest.skip("reads each row's own pages")
    runs = [run(0, 2 * PAGE, (2, 0, 1))]
    world, under_test = start((30, 20, 25), runs)
    world.table_SP[:2, :2] = 0
    world.step(under_test, [(0, 1), (1, 1), (2, 1)], runs=runs)
    world.check()


def test_random_trees(start: Start, run: Any) -> None:
    for seed in range(2):
        chance = random.Random(seed)
        runs: list[Any] = []
        _grow(chance, run, runs, list(range(chance.randint(4, 14))), 0, 4)
        shared = [max([run.high for run in runs if slot in run.slots], default=0) for slot in range(14)]
        world, backend = start(tuple(high + chance.randint(3, 30) for high in shared), runs, num_heads=3)
        world.step(backend, [(slot, 1) for slot in chance.sample(range(14), 14)], runs=runs)
        world.check()


def _grow(chance: random.Random, run: Any, runs: list[Any], slots: list[int], low: int, levels: int) -> None:
    """A run of the slots from `low` on, then a random division of them."""
    if len(slots) < 2 or levels == 0:
        return
    high = low + PAGE * chance.randint(1, 6)
    runs.append(run(low, high, tuple(slots)))
    cut = chance.randint(1, len(slots))
    for part in (slots[:cut], slots[cut:]):
        _grow(chance, run, runs, part, high, levels - 1)


@pytest.mark.parametrize("padding", [0, 3])
def test_rows_with_drafts_stay_on_their_runs(start: Start, run: Any, padding: int) -> None:
    """Rows of one to four tokens on two levels of runs, one in no run, a longer span behind them."""
    runs = [run(0, 2 * PAGE, (0, 1, 2, 3)), run(2 * PAGE, 4 * PAGE, (2, 0))]
    world, backend = start((44, 26, 40, 30, 9, 40), runs, num_heads=4, num_kv_heads=2)
    for slot in range(6):
        world.fed[slot] -= 2 if slot < 5 else 18
    rows = [(2, 4), (0, 1), (1, 3), (4, 2), (3, 4), (5, 12)]
    world.step(backend, rows, runs=runs, drafted=5, padding=padding, no_rows=padding)
    world.check()


@pytest.mark.parametrize("window", [None, 11])
def test_rows_with_drafts_in_several_tiles_and_parts(start: Start, window: int | None) -> None:
    """Of one query, of some, of more than a tile holds, a span behind them; none of one token alone."""
    world, backend = start((300, 90, 34, 12, 30), [], num_heads=4, num_kv_heads=2, window=window)
    for slot, count in enumerate((19, 33, 1, 3, 9)):
        world.fed[slot] -= count - 1
    world.step(backend, [(0, 19), (1, 33), (2, 1), (3, 3), (4, 9)], drafted=4, padding=2, no_rows=1)
    world.check()
    world.step(backend, [(0, 1), (3, 1), (1, 1)], drafted=3)
    world.check()


def test_rows_with_drafts_alone(start: Start) -> None:
    world, backend = start((34, 30), [])
    world.step(backend, [(1, 2), (0, 2)], drafted=2)
    world.check()
