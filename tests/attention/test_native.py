"""What the CPU's own attention does beside what every backend does: runs, parts of long rows, int8, every build."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch

from sapwood.attention.native import Native
from sapwood.base.kv import KVGroup
from sapwood.kernels.cpu.library import Machine, find
from tests import kv

PAGE = 16
NAN_FREE = "an output that is finite has read no cell that nobody has written"


@pytest.fixture(params=["base", "avx2", "avx2vnni", "avx512", "neon"])
def make(request: pytest.FixtureRequest) -> partial[Native]:
    library = find(request.param)
    if isinstance(library, str):
        pytest.skip(library)
    return partial(Native, machine=Machine(library, 2))


def group(**changes: Any) -> KVGroup:
    facts = {"num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 40, "window": None, "page_size": PAGE}
    return kv.group(**(facts | changes))


@pytest.mark.parametrize("members", [2, 9, 40])
def test_runs_are_read_once_for_all_their_members(make: Any, world: Any, run: Any, members: int) -> None:
    """A run of all, one of half of them behind it, and rows that are in neither."""
    runs = [run(0, 4 * PAGE, tuple(range(members))), run(4 * PAGE, 9 * PAGE, tuple(range(members // 2 + 1)))]
    made = world(group(), tuple(150 + slot % 37 for slot in range(members + 2)))
    for one in runs:
        made.share(one)
    backend = made.start(make)
    made.step(backend, [(slot, length - 2) for slot, length in enumerate(made.lengths)])
    made.step(backend, [(slot, 1) for slot in range(members)], runs=runs)
    made.step(backend, [*((slot, 1) for slot in range(members)), (members, 2)], runs=runs)
    made.check()


@pytest.mark.parametrize("sinks", [False, True])
def test_bent_scores_of_runs(make: Any, world: Any, run: Any, sinks: bool) -> None:
    runs = [run(0, 4 * PAGE, tuple(range(9)))]
    slopes = (0.5, 0.25, 0.1, 0.3, 0.05, 0.02)
    made = world(group(cap=0.7, slopes=slopes, sinks=sinks), tuple(90 + slot % 37 for slot in range(9)), scale=0.6)
    for one in runs:
        made.share(one)
    backend = made.start(make)
    made.step(backend, [(slot, length - 2) for slot, length in enumerate(made.lengths)])
    made.step(backend, [(slot, 1) for slot in range(9)], runs=runs)
    made.check()


@pytest.mark.parametrize(("window", "sinks"), [(None, False), (None, True), (900, False)])
def test_a_long_row_is_split_among_threads(make: Any, world: Any, window: int | None, sinks: bool) -> None:
    made = world(group(num_heads=3, num_kv_heads=1, window=window, sinks=sinks), (1500,))
    backend = made.start(make)
    made.step(backend, [(0, 1490)])
    for _ in range(10):
        made.step(backend, [(0, 1)])
    made.check()


def cut(number: int, sizes: Iterable[int]) -> list[int]:
    """The sizes, over and over, until they make `number`."""
    pieces: list[int] = []
    for size in itertools.cycle(sizes):
        if not number:
            return pieces
        pieces.append(min(size, number))
        number -= pieces[-1]
    return pieces


@pytest.mark.parametrize("window", [None, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_a_row_has_the_same_bits_in_any_company(
    make: Any, world: Any, run: Any, dtype: torch.dtype, window: int | None
) -> None:
    """Alone and split among threads, in runs that end within blocks, and in chunks of any size."""
    lengths, single = (1100, 1185, 1160, 700), 4
    runs = [run(0, 37 * PAGE, (0, 1, 2, 3)), run(37 * PAGE, 65 * PAGE, (0, 1, 2))]

    def start() -> tuple[Any, Any]:
        made = world(group(num_layers=1, num_heads=3, num_kv_heads=1, head_dim=24, window=window), lengths)
        for one in runs:
            made.share(one)
        made.fed = [0] * len(lengths)
        backend = make(made.group, 1, made.device, dtype)
        backend.allocate(made.num_pages)
        return made, backend

    alone, backend = start()
    for slot, length in enumerate(lengths):
        for count in [length - single] + [1] * single:
            alone.step(backend, [(slot, count)])
    together, backend = start()
    together.step(backend, [(slot, length - single) for slot, length in enumerate(lengths)])
    for _ in range(single):
        together.step(backend, [(slot, 1) for slot in range(len(lengths))], runs=runs)
    chunked, backend = start()
    chunks = [cut(length, sizes) for length, sizes in zip(lengths, ([1100], [77, 1], [512], [64, 3, 250]), strict=True)]
    for counts in itertools.zip_longest(*chunks):
        chunked.step(backend, [(slot, count) for slot, count in enumerate(counts) if count])
    for slot in range(len(lengths)):
        assert alone.outputs[slot].isfinite().all()
        assert torch.equal(alone.outputs[slot], together.outputs[slot])
        assert torch.equal(alone.outputs[slot], chunked.outputs[slot])


@pytest.mark.parametrize("window", [None, 33])
def test_int8_is_as_exact_as_its_digits(make: Any, world: Any, window: int | None) -> None:
    """Random keys and values: 8 bits leave an error of about a percent, which no other mistake would."""
    chance = random.Random(1)
    made = world(group(window=window), tuple(chance.randint(3, 200) for _ in range(5)))
    backend = make(made.group, 1, made.device, torch.int8)
    backend.allocate(made.num_pages)
    for scales in backend.pools()[2:]:
        scales.fill_(float("nan"))
    while waiting := [slot for slot, length in enumerate(made.lengths) if made.fed[slot] < length]:
        made.step(
            backend, [(slot, min(chance.choice([1, 7, 90]), made.lengths[slot] - made.fed[slot])) for slot in waiting]
        )
    for slot in range(len(made.lengths)):
        expected, found = made.expected(slot), made.outputs[slot]
        assert found.isfinite().all(), NAN_FREE
        assert (found - expected).abs().max() < 0.06
        assert (found - expected).norm() < 0.015 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_what_is_not_finite_is_told(make: Any, world: Any, dtype: torch.dtype) -> None:
    made = world(group(), (20, 20))
    made.values[0][:, 3] = float("inf")
    backend = make(made.group, 1, made.device, dtype)
    backend.allocate(made.num_pages)
    made.step(backend, [(0, 20), (1, 20)])
    assert not made.outputs[0][5].isfinite().all()
    assert made.outputs[1].isfinite().all()


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(2, 1, 7), (3, 3, 80), (5, 1, 96), (2, 2, 256), (64, 1, 16), (66, 2, 8)]
)
def test_heads_of_any_size_and_number(
    make: Any, world: Any, heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    made = world(group(num_heads=heads, num_kv_heads=kv_heads, head_dim=size, window=window), (70, 18, 1))
    backend = made.start(make)
    made.step(backend, [(0, 67), (1, 17), (2, 1)])
    made.step(backend, [(0, 1), (1, 1)])
    made.step(backend, [(0, 2)])
    made.check()


def test_so_many_query_heads_share_a_kv_head() -> None:
    cpu = torch.device("cpu")
    assert Native.refuse(group(num_heads=128, num_kv_heads=2), cpu, torch.float32) is None
    refused = Native.refuse(group(num_heads=71, num_kv_heads=1), cpu, torch.float32)
    assert refused is not None
    assert "at most 64 query heads" in refused


def test_pages_are_multiples_of_sixteen() -> None:
    refused = Native.refuse(group(page_size=8), torch.device("cpu"), torch.float32)
    assert refused is not None
    assert "--page-size is 8" in refused
