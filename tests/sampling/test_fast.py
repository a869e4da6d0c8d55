"""Tokens drawn by the kernels and row by row in numpy, each against the other and both against float64."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.base.sampling import SamplingParams
from sapwood.sampling import fast
from sapwood.sampling.settings import RECORD_WORDS, WORDS, records
from tests.sampling import twin

pytest.importorskip("triton")

from sapwood.kernels.triton import sample

MIXED = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.3),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=0.7, top_k=300, top_p=0.8, min_p=0.01),
    SamplingParams(temperature=5.0, top_k=2000, top_p=0.999),
    SamplingParams(temperature=0.02, top_k=50, min_p=0.5),
    SamplingParams(temperature=100.0, top_p=0.5),
    SamplingParams(top_p=1e-9),
    SamplingParams(temperature=1e-3, top_p=0.9),
    SamplingParams(top_k=2**31 - 1, min_p=1.0),
]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0, 2**32, -(2**32)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    return str(request.param)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few tokens have many strips and blocks, and seldom fit among the candidates."""
    monkeypatch.setattr(sample, "STRIP", 4)
    monkeypatch.setattr(sample, "STRIPS", 8)
    monkeypatch.setattr(sample, "CANDIDATES", 16)


def table(params: Sequence[SamplingParams], seeds: Sequence[int]) -> Tensor:
    rows = records([(mine, seed, 0, 0) for mine, seed in zip(params, seeds, strict=True)])
    return torch.from_numpy(rows.view(np.int32).reshape(len(rows), RECORD_WORDS).copy())


def by_kernels(
    logits_NV: Tensor, settings_SK: Tensor, slots_N: Tensor, positions_N: Tensor, device: str = "cpu"
) -> list[int]:
    on_device = [x.to(device) for x in (logits_NV, settings_SK, slots_N, positions_N)]
    out_N = torch.full((len(slots_N),), -7, dtype=torch.int32, device=device)
    sample.draw(*on_device, out_N, WORDS)
    return out_N.tolist()


def by_rows(logits_NV: Tensor, settings_SK: Tensor, slots_N: Tensor, positions_N: Tensor) -> list[int]:
    out_N = torch.full((len(slots_N),), -7, dtype=torch.int32)
    fast.draw(logits_NV, settings_SK, slots_N, positions_N, out_N)
    return out_N.tolist()


def by_twin(logits_V: Tensor, params: SamplingParams, seed: int, position: int) -> int:
    raw = logits_V.double().numpy()
    if params.greedy:
        return int(raw.argmax())
    return twin.choice(twin.weights(raw, params), twin.uniform(seed, position))


def check_mixed(vocab: int, dtype: torch.dtype, device: str, *, times: int = 1, scale: float = 2.0) -> None:
    """Rows of all kinds, in slots in random order."""
    num, random = len(MIXED) * times, torch.Generator().manual_seed(vocab)
    logits_NV = (torch.randn(num, vocab, generator=random) * scale).to(dtype)
    slots_N = torch.randperm(num + 3, generator=random)[:num].int()
    positions_N = torch.randint(0, 2**31 - 2, (num,), generator=random).int()
    params = [MIXED[slot % len(MIXED)] for slot in range(num + 3)]
    seeds = [SEEDS[slot % len(SEEDS)] + slot // len(SEEDS) % 5 * (1 if slot % 2 else 0) for slot in range(num + 3)]
    rows = logits_NV, table(params, seeds), slots_N, positions_N
    found, others = by_kernels(*rows, device), by_rows(*rows)
    assert min(found) >= 0
    exact = [
        by_twin(logits_V, params[slot], seeds[slot], position)
        for logits_V, slot, position in zip(logits_NV, slots_N.tolist(), positions_N.tolist(), strict=True)
    ]
    for mine, wanted in ((found, others), (found, exact), (others, exact)):
        differing = [place for place in range(num) if mine[place] != wanted[place]]
        assert len(differing) <= num // 50, "float32 may part from float64 at a border, but hardly ever"
        assert all(params[slots_N[place]].temperature > 0 for place in differing)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("vocab", [1, 2, 100, 1000, 5003])
def test_mixed_rows_do_as_each_other_and_as_float64(vocab: int, dtype: torch.dtype, device: str) -> None:
    check_mixed(vocab, dtype, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize(("vocab", "times"), [(100, 2), (331, 1)])  # less and more than the largest top-k that cuts
@pytest.mark.parametrize("scale", [0.3, 6.0])
def test_rows_of_many_blocks(
    vocab: int, times: int, dtype: torch.dtype, scale: float, small_tiles: None, device: str
) -> None:
    check_mixed(vocab, dtype, device, times=times, scale=scale)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("vocab", [20011, 128256, 262144])
def test_whole_vocabularies(vocab: int, dtype: torch.dtype) -> None:
    check_mixed(vocab, dtype, "cuda", times=4)


def test_equal_tokens_are_kept_from_the_lowest_id(small_tiles: None, device: str) -> None:
    """At the positions whose draws lie nearest to both ends of what is kept, where one token more or less shows."""
    vocab, num = 150, 40 if device == "cuda" else 4
    uniforms = np.array([twin.uniform(11, position) for position in range(400)])
    positions = np.sort(np.argsort(uniforms)[[*range(num // 2), *range(-num // 2, 0)]])
    logits_NV = torch.zeros(num, vocab)
    logits_NV[:, [2, 90]] = -1.0
    rest = [i for i in range(vocab) if i not in (2, 90)]
    for params, kept in (
        (SamplingParams(top_k=5), rest[:5]),
        (SamplingParams(top_k=77), rest[:77]),
        (SamplingParams(top_k=149), [*rest, 2]),
        (SamplingParams(top_k=50, top_p=0.5), rest[:25]),
        (SamplingParams(min_p=0.5), rest),
        (SamplingParams(top_k=100, min_p=1.0), rest[:100]),
    ):
        rows = table([params], [11]), torch.zeros(num, dtype=torch.int32), torch.tensor(positions, dtype=torch.int32)
        found = by_kernels(logits_NV, *rows, device)
        mass = np.cumsum([1.0 if i in rest else np.exp(-1.0) for i in sorted(kept)])
        places = np.searchsorted(mass, uniforms[positions] * mass[-1], side="right")
        assert found == [sorted(kept)[place] for place in places.tolist()] == by_rows(logits_NV, *rows)


def test_frequencies_follow_the_weights(small_tiles: None, device: str) -> None:
    """The kernels draw what the host's rows draw: interpreted ones are asked for some of them."""
    num, vocab = 600, 60
    some = num if device == "cuda" else 20
    params = SamplingParams(temperature=0.8, top_k=12, top_p=0.9)
    logits_V = torch.randn(vocab, generator=torch.Generator().manual_seed(4)) * 1.5
    logits_NV, settings_SK = logits_V.repeat(num, 1), table([params], [5])
    slots_N, positions_N = torch.zeros(num, dtype=torch.int32), torch.arange(num, dtype=torch.int32)
    found = by_rows(logits_NV, settings_SK, slots_N, positions_N)
    assert found[:some] == by_kernels(logits_NV[:some], settings_SK, slots_N[:some], positions_N[:some], device)
    wanted = twin.weights(logits_V.double().numpy(), params)
    likely = np.flatnonzero(wanted)
    counts = np.bincount(found, minlength=vocab)
    assert counts.sum() == counts[likely].sum() == num
    expected = wanted[likely] / wanted.sum() * num
    degrees = len(likely) - 1
    assert degrees >= 4
    assert ((counts[likely] - expected) ** 2 / expected).sum() < degrees + 4 * np.sqrt(2 * degrees)


def test_a_row_without_finite_logits_is_alone_in_it(device: str) -> None:
    vocab = 200
    for params in MIXED:
        logits_NV = torch.randn(6, vocab, generator=torch.Generator().manual_seed(1))
        rows = table([params], [9]), torch.zeros(6, dtype=torch.int32), torch.arange(6, dtype=torch.int32)
        clean = by_kernels(logits_NV, *rows, device)
        logits_NV[1, 7], logits_NV[2, 199], logits_NV[3], logits_NV[4, :150] = (
            torch.nan,
            torch.inf,
            -torch.inf,
            torch.nan,
        )
        before = logits_NV.clone()
        found = by_kernels(logits_NV, *rows, device)
        assert found == [clean[0], -1, -1, -1, -1, clean[5]] == by_rows(logits_NV, *rows)
        assert torch.equal(before.view(torch.int32), logits_NV.view(torch.int32))


def test_impossible_tokens_are_never_drawn(device: str) -> None:
    logits_NV = torch.full((len(MIXED), 300), -torch.inf)
    logits_NV[:, [17, 290]] = torch.tensor([1.0, 1.5])
    places_N = torch.arange(len(MIXED), dtype=torch.int32)
    rows = logits_NV, table(MIXED, list(range(len(MIXED)))), places_N, places_N
    found = by_kernels(*rows, device)
    assert set(found) == {17, 290}, "both come, and nothing else"
    assert found == by_rows(*rows)


def test_rows_may_lie_apart(device: str) -> None:
    wide = torch.randn(len(MIXED), 517, generator=torch.Generator().manual_seed(2)).to(device)
    places_N = torch.arange(len(MIXED), dtype=torch.int32)
    rows = table(MIXED, list(range(len(MIXED)))), places_N, places_N
    assert by_kernels(wide[:, :500], *rows, device) == by_kernels(wide[:, :500].contiguous(), *rows, device)


@pytest.mark.gpu
def test_a_graph_holds_it() -> None:
    num, vocab = len(MIXED), 32000
    logits_NV = torch.zeros(num, vocab, device="cuda", dtype=torch.bfloat16)
    places_N = torch.arange(num, dtype=torch.int32, device="cuda")
    settings_SK, positions_N, out_N = table(MIXED, SEEDS[:1] * num).cuda(), places_N.clone(), places_N.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        fast.draw(logits_NV, settings_SK, places_N, positions_N, out_N)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fast.draw(logits_NV, settings_SK, places_N, positions_N, out_N)
    for seed in range(3):
        logits_NV.normal_(0, 3, generator=torch.Generator("cuda").manual_seed(seed))
        positions_N.fill_(seed)
        graph.replay()
        replayed = out_N.tolist()
        fast.draw(logits_NV, settings_SK, places_N, positions_N, out_N)
        assert replayed == out_N.tolist()
