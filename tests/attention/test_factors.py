"""Keys and values that are divided by factors of their heads before they are stored in float8, against dense attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.attention.base import Backend
from sapwood.attention.reference import Reference
from sapwood.attention.scaled import Factors, divided
from tests import kv

FLOAT8 = torch.float8_e4m3fn
KEYS_K, VALUES_K = torch.tensor([3e-5, 0.7]), torch.tensor([40.0, 2e-4])
SIZES_K = (torch.tensor([1e-3, 2.0]), torch.tensor([2e3, 2e-3]))
"""Of keys and values: the first value would overflow, what is small would lose its digits, if they were stored as they are."""


def group(**changes: Any) -> Any:
    facts = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "window": None, "page_size": 8}
    return kv.group(**(facts | changes))


def grown(world: Any) -> None:
    """Keys and values of sizes that float8 has no digits for, and that it holds exactly once they are divided."""
    for tensors, sizes_K, factors_K in (
        (world.keys, SIZES_K[0], KEYS_K),
        (world.values, SIZES_K[1], VALUES_K),
    ):
        for tensor in tensors:
            x_LNKD = tensor * sizes_K[:, None] / factors_K[:, None]
            assert x_LNKD.abs().max() < 448
            tensor.copy_(x_LNKD.to(FLOAT8).float() * factors_K[:, None])
    for queries in world.queries:
        queries[:, :, :2] *= 1e3  # of small keys
        queries.copy_(queries.to(world.dtype))


def filled(backend: Any) -> Any:
    factors: Factors = backend.factors
    for layer in range(len(factors.of_layers_L2K)):
        factors.put(layer, 0, KEYS_K)
        factors.put(layer, 1, VALUES_K)
    return backend


def close(world: Any, firsts: dict[int, int], tolerance: float) -> None:
    """Each head by its own size."""
    sizes_H1 = SIZES_K[1].repeat_interleave(2)[:, None]
    for slot, first in firsts.items():
        got, wanted = (x[first : world.fed[slot]] / sizes_H1 for x in (world.outputs[slot], world.expected(slot)))
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_what_is_divided_is_of_the_dtype_and_no_larger_than_it_holds() -> None:
    x_TKD = torch.tensor([[[1e5, -1e5, 3.0]]])
    assert divided(x_TKD, torch.tensor([1.0]), FLOAT8).float().flatten().tolist() == [448.0, -448.0, 3.0]
    assert divided(x_TKD, torch.tensor([1e3]), FLOAT8).float().flatten().tolist()[:2] == [96.0, -96.0]


@pytest.mark.parametrize("window", [None, 12])
def test_reference(world: Any, window: int | None) -> None:
    made = world(group(window=window), (40, 21))
    grown(made)
    backend = filled(made.start(Reference, FLOAT8))
    made.step(backend, [(0, 30), (1, 20)])
    made.step(backend, [(0, 9), (1, 1)])
    close(made, {0: 0, 1: 0}, 1e-4)


def test_without_factors_the_same_is_lost(world: Any) -> None:
    made = world(group(), (20,))
    grown(made)
    made.step(made.start(Reference, FLOAT8), [(0, 20)])
    with pytest.raises(AssertionError):
        close(made, {0: 0}, 0.1)


def cells(world: Any, backend: Any) -> None:
    """What the reference stores, in pages of the kernels, which the interpreter does not round to float8 well."""
    reference: Backend = filled(world.start(Reference, FLOAT8))
    fed = list(world.fed)
    world.step(reference, [(slot, length) for slot, length in enumerate(world.lengths)])
    world.fed[:] = fed
    for ours, theirs in zip(backend.pools(), reference.pools(), strict=True):
        ours.view(torch.uint8).copy_(theirs.view(torch.uint8).transpose(2, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
@pytest.mark.parametrize(
    ("computed", "changes"),
    [
        (torch.float16, {}),
        (torch.float32, {"cap": 3.0}),
        (torch.float32, {"sinks": True, "window": 12}),
    ],
)
def test_kernels_read(world: Any, run: Any, computed: torch.dtype, changes: dict[str, Any]) -> None:
    """Interpreted, by rows, runs and spans, and joined from their parts."""
    pytest.importorskip("triton")
    from sapwood.attention import triton

    made = world(group(num_layers=1, **changes), (40, 35, 21), dtype=computed)
    runs = [] if made.group.window else [run(0, 16, (0, 1))]
    for one in runs:
        made.share(one)
    grown(made)
    backend: Any = filled(made.start(triton.Triton, FLOAT8))
    cells(made, backend)
    written = [pool.view(torch.uint8).clone() for pool in backend.pools()]

    def keep(*_: object, **__: object) -> None:
        for pool, before in zip(backend.pools(), written, strict=True):
            pool.view(torch.uint8).copy_(before)

    place: Any = triton.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "place", lambda *given, **named: (place(*given, **named), keep()))
        made.fed[:] = [38, 33, 10]
        made.step(backend, [(0, 1), (1, 1), (2, 9)], runs=runs)
        made.step(backend, [(0, 1), (1, 1)], runs=runs)
    close(made, {0: 38, 1: 33, 2: 10}, 5e-3 if computed == torch.float16 else 1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
def test_kernels_write(world: Any) -> None:
    """Interpreted: what is stored is off by no more than its rounding there."""
    pytest.importorskip("triton")
    from sapwood.attention.triton import Triton

    made = world(group(num_layers=1), (12,), dtype=torch.float32)
    grown(made)
    stored: list[Tensor] = []
    for backend in (filled(made.start(Triton, FLOAT8)), filled(made.start(Reference, FLOAT8))):
        made.fed[:] = [0]
        made.step(backend, [(0, 12)])
        pools = [pool.float() for pool in backend.pools()]
        stored.append(torch.stack([pool if backend.name == "triton" else pool.transpose(2, 3) for pool in pools]))
    assert stored[1].nan_to_num().abs().max() > 50
    torch.testing.assert_close(*stored, rtol=1 / 8, atol=1e-2, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_compiled(world: Any, run: Any, head_dim: int) -> None:
    from sapwood.attention.triton import Triton

    shape = group(num_heads=8, head_dim=head_dim, page_size=16)
    made = world(shape, (700, 400, 130), device=torch.device("cuda"), dtype=torch.bfloat16, scale=head_dim**-0.5)
    runs = [run(0, 256, (0, 1))]
    made.share(runs[0])
    for tensors, factors_K in ((made.keys, KEYS_K), (made.values, VALUES_K)):
        for tensor in tensors:
            tensor.copy_((tensor.to(FLOAT8).float() * factors_K[:, None]).to(torch.bfloat16))
    for queries in made.queries:
        queries.copy_((queries / KEYS_K.repeat_interleave(4)[:, None]).to(torch.bfloat16))
    backend = filled(made.start(Triton, FLOAT8))
    made.step(backend, [(0, 600), (1, 390), (2, 100)])
    made.step(backend, [(0, 1), (1, 1), (2, 3)], runs=runs)
    made.step(backend, [(0, 1), (1, 1), (2, 1)], runs=runs)
    sizes_H1 = VALUES_K.repeat_interleave(4)[:, None]
    for slot in range(3):
        got, wanted = (x[: made.fed[slot]] / sizes_H1 for x in (made.outputs[slot], made.expected(slot)))
        torch.testing.assert_close(got, wanted, atol=0.15, rtol=0.15)
