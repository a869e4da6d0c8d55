"""Every backend against dense attention, and what must hold of any of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from sapwood.attention.base import Backend, RowLimits
from sapwood.attention.cpu import Cpu
from sapwood.attention.native import Native
from sapwood.attention.reference import Reference
from sapwood.base.kv import KVGroup
from sapwood.kernels.cpu.library import Machine, find
from sapwood.runner.parts import copy_pages
from tests import kv


def group(**changes: Any) -> KVGroup:
    facts = {"num_layers": 1, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "window": None, "page_size": 8}
    return kv.group(**(facts | changes))


def machine() -> Machine:
    library = find()
    if isinstance(library, str):
        pytest.skip(library)
    return Machine(library, 2)


def triton() -> type[Backend]:
    pytest.importorskip("triton")
    from sapwood.attention.triton import Triton

    return Triton


Start = Callable[..., tuple[Any, Backend]]


@pytest.fixture(
    params=[
        "reference",
        "cpu",
        "native",
        "triton-interpreted",
        pytest.param("reference-gpu", marks=pytest.mark.gpu),
        pytest.param("triton-gpu", marks=pytest.mark.gpu),
    ]
)
def start(request: pytest.FixtureRequest, world: Any) -> Start:
    """start(group, lengths, **world's options) -> (world, the backend under test)"""
    if request.param == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    backend: Any = {"reference": Reference, "cpu": Cpu, "native": Native}.get(request.param.split("-")[0]) or triton()
    make = partial(Native, machine=machine()) if backend is Native else backend
    device = torch.device("cuda" if request.param.endswith("-gpu") else "cpu")

    def build(facts: KVGroup, lengths: tuple[int, ...], **options: Any) -> tuple[Any, Backend]:
        if backend is Native:
            if options.get("dtype") == torch.bfloat16:
                pytest.skip("it stores no bfloat16")
            facts = replace(facts, page_size=max(16, facts.page_size))
        served = torch.device("cpu" if backend in (Cpu, Native) else "cuda")  # interpreted kernels are said to be there
        assert backend.refuse(facts, served, torch.float32) is None
        made = world(facts, lengths, device=device, **options)
        return made, made.start(make)

    return build


SLOPES = (0.5, 0.25, 0.1, 0.3, 0.05, 0.02)


@pytest.mark.parametrize(
    "bent",
    [
        {"cap": 0.7},
        {"slopes": SLOPES},
        {"cap": 0.7, "slopes": SLOPES, "window": 11},
        {"sinks": True},
        {"sinks": True, "window": 11},
    ],
    ids="-".join,
)
def test_scores_are_capped_and_fall_with_distance_beside_sinks(start: Start, bent: dict[str, Any]) -> None:
    world, backend = start(group(**bent), (40, 21, 9), scale=0.6)
    world.step(backend, [(0, 30), (1, 7)])
    world.step(backend, [(2, 8), (0, 1), (1, 12)])
    world.step(backend, [(0, 1), (1, 1), (2, 1)])
    world.check()


def test_prompt_chunks_and_decode_mixed(start: Start) -> None:
    world, backend = start(group(), (40, 21, 9))
    world.step(backend, [(0, 30), (1, 7)])
    world.step(backend, [(2, 8), (0, 1), (1, 12)])
    world.step(backend, [(0, 1), (1, 1), (2, 1)])
    world.step(backend, [(1, 1), (0, 5)])
    world.check()


@pytest.mark.parametrize("window", [1, 5, 8, 19])
def test_window(start: Start, window: int) -> None:
    world, backend = start(group(window=window), (45, 20))
    world.step(backend, [(0, 33), (1, 3)])
    world.step(backend, [(1, 13), (0, 1)])
    world.step(backend, [(0, 9), (1, 1)])
    world.step(backend, [(0, 1), (1, 1)])
    world.check()


@pytest.mark.parametrize("size", [1, 5, 8, 20])
def test_chunks(start: Start, size: int, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["start"] == "native":
        pytest.skip("refused by it")
    world, backend = start(group(window=size, chunked=True), (45, 20))
    world.step(backend, [(0, 33), (1, 3)])
    world.step(backend, [(1, 13), (0, 1)])
    world.step(backend, [(0, 9), (1, 1)])
    world.step(backend, [(0, 1), (1, 1)])
    world.check()


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (7, 1), (8, 2)])
@pytest.mark.parametrize("head_dim", [16, 24])
def test_heads(start: Start, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    world, backend = start(group(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim), (14, 4))
    world.step(backend, [(0, 12), (1, 3)])
    world.step(backend, [(0, 1), (1, 1)])
    world.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(start: Start, dtype: torch.dtype) -> None:
    world, backend = start(group(), (40, 12), dtype=dtype)
    if backend.name == "triton" and world.device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton 3.6's interpreter multiplies the bit patterns of bfloat16")
    world.step(backend, [(0, 35), (1, 11)])
    world.step(backend, [(0, 2), (1, 1)])
    world.step(backend, [(0, 1)])
    world.check()


def test_shared_prefix_pages(start: Start) -> None:
    world, backend = start(group(), (24, 20, 18), shared=16)
    world.step(backend, [(0, 16)])
    world.step(backend, [(0, 1), (1, 3), (2, 1)])
    world.step(backend, [(2, 1), (1, 1), (0, 1)])
    world.check()


def test_a_row_sees_what_another_row_of_the_step_writes(start: Start) -> None:
    world, backend = start(group(), (20, 22), shared=16)
    world.step(backend, [(0, 18), (1, 5)])
    world.check()


def test_layers_and_page_sizes(start: Start) -> None:
    for page_size in (16, 128):
        world, backend = start(group(num_layers=2, page_size=page_size), (35, 5))
        world.step(backend, [(0, 34), (1, 4)])
        world.step(backend, [(0, 1), (1, 1)])
        world.check()


def test_consecutive_pages(start: Start) -> None:
    world, backend = start(group(), (60,), shuffled=False)
    world.step(backend, [(0, 50)])
    world.step(backend, [(0, 1)])
    world.check()


def test_padding_tokens_harm_nobody(start: Start) -> None:
    """Tokens of no row write NaN to page 0, and never reach a row."""
    world, backend = start(group(window=12), (30, 3))
    world.step(backend, [(0, 26), (1, 2)], padding=5)
    world.step(backend, [(0, 1), (1, 1)], padding=2)
    world.check()


def test_rows_of_no_token(start: Start) -> None:
    """A batch padded in rows and tokens, as for a graph."""
    world, backend = start(group(), (30, 30, 9))
    world.step(backend, [(0, 26), (1, 1), (2, 3)], padding=3, no_rows=4)
    world.step(backend, [(1, 1), (0, 1)], padding=2, no_rows=2)
    world.step(backend, [(1, 6), (2, 5)], no_rows=1)
    world.check()


def test_few_queries_over_a_long_history(start: Start) -> None:
    for window in (None, 100):
        world, backend = start(group(window=window), (420, 30))
        world.feed(backend, [(0, 400), (1, 20)])
        world.step(backend, [(0, 5), (1, 3)])
        world.step(backend, [(0, 3), (1, 1)])
        world.check()


def test_copied_pages(start: Start) -> None:
    world, backend = start(group(num_layers=2), (24, 24), seed=3)
    for tensors in (world.keys, world.values):
        tensors[1][:, :16] = tensors[0][:, :16]
    world.step(backend, [(0, 16)])
    sources, targets = world.table_SP[0, :2].long().to(world.device), world.table_SP[1, :2].long().to(world.device)
    copy_pages(backend, sources, targets)
    world.fed[1] = 16
    world.step(backend, [(0, 1), (1, 2)])
    world.outputs[1][:16] = world.expected(1)[:16]
    world.check()


def test_a_row_with_nan_harms_only_itself(start: Start) -> None:
    world, backend = start(group(), (20, 13, 6))
    world.keys[1][:] = world.values[1][:] = float("nan")
    world.step(backend, [(1, 12)])
    world.step(backend, [(0, 17), (2, 5), (1, 1)])
    world.step(backend, [(0, 1), (2, 1)])
    world.check([0, 2])


def test_pages_of_a_broken_request_are_reused(start: Start) -> None:
    """The tail of a page keeps what an earlier request left there, NaN in the worst case."""
    world, backend = start(group(), (24, 20))
    keys, values = world.keys[0].clone(), world.values[0].clone()
    world.keys[0][:] = world.values[0][:] = float("nan")
    world.step(backend, [(0, 24)])
    world.keys[0][:], world.values[0][:], world.fed[0] = keys, values, 0
    world.step(backend, [(0, 11), (1, 13)])
    world.step(backend, [(0, 1), (1, 1)])
    world.check()


def test_a_rows_result_is_independent_of_the_batch(start: Start) -> None:
    alone, backend = start(group(), (36, 20, 5))
    alone.step(backend, [(0, 30)])
    alone.step(backend, [(0, 1)])
    mixed, backend = start(group(), (36, 20, 5))
    mixed.step(backend, [(1, 19), (0, 30), (2, 2)])
    mixed.step(backend, [(2, 1), (1, 1), (0, 1)])
    torch.testing.assert_close(mixed.outputs[0][:31], alone.outputs[0][:31], atol=1e-6, rtol=1e-5)


def test_random_schedules(start: Start) -> None:
    """Spans of any size, slots in any order, until every sequence is fed."""
    for seed in range(2):
        chance = random.Random(seed)
        window = chance.choice([None, 7, 20])
        world, backend = start(group(window=window), tuple(chance.randint(1, 40) for _ in range(4)), seed=seed)
        _feed(world, backend, chance, largest=25)
        world.check()


@pytest.mark.parametrize("backend", [Cpu, "native", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("window", [None, 70])
def test_random_large_schedules(backend: Any, window: int | None, world: Any) -> None:
    """Sizes at which blocks, buckets, tiles and splits all come into play."""
    chance = random.Random(5)
    device = torch.device("cuda" if backend == "triton" else "cpu")
    if backend == "native":
        backend = partial(Native, machine=machine())
    lengths = tuple(chance.choice([3, 60, 200, 450]) + chance.randint(0, 150) for _ in range(12))
    made = world(group(window=window, page_size=16), lengths, device=device)
    _feed(made, made.start(triton() if backend == "triton" else backend), chance, largest=300)
    made.check()


def test_limits_are_upper_bounds(start: Start) -> None:
    """More rows of either kind than there are, as in a graph made for a bucket."""
    world, backend = start(group(), (20, 14))
    world.step(backend, [(0, 12), (1, 9)])
    batch = world.batch
    world.batch = lambda *args, **options: replace(
        made := batch(*args, **options), limits=RowLimits(len(made.counts_R), len(made.counts_R))
    )
    world.step(backend, [(0, 1), (1, 1)], padding=4)
    world.step(backend, [(0, 3), (1, 1)], padding=4)
    world.check()


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_shapes(world: Any, head_dim: int, dtype: torch.dtype) -> None:
    for (num_heads, num_kv_heads), window, page_size in (((9, 3), None, 16), ((8, 1), 100, 8), ((4, 4), None, 128)):
        facts = group(
            num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, window=window, page_size=page_size
        )
        scale = head_dim**-0.5
        made = world(facts, (900, 130, 64, 1500), device=torch.device("cuda"), dtype=dtype, scale=scale)
        _feed(made, backend := made.start(triton()), random.Random(head_dim), largest=700)
        made.check()
        made.fed[:] = [870, 129, 40, 1483]
        made.step(backend, [(3, 17), (1, 1), (0, 5), (2, 24)], drafted=3, padding=17, no_rows=4)
        made.check()


def _feed(world: Any, backend: Backend, chance: random.Random, *, largest: int) -> None:
    while waiting := [slot for slot, length in enumerate(world.lengths) if world.fed[slot] < length]:
        slots = chance.sample(waiting, chance.randint(1, len(waiting)))
        wanted = [(slot, 1 if chance.random() < 0.4 else chance.randint(1, largest)) for slot in slots]
        world.step(backend, [(slot, min(count, world.lengths[slot] - world.fed[slot])) for slot, count in wanted])
