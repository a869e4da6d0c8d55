"""Drawing row by row in numpy against the slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.base.sampling import SamplingParams
from sapwood.sampling import rows
from sapwood.sampling.logprobs import logprobs
from sapwood.sampling.settings import RECORD_WORDS, records
from tests.sampling import twin

PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(top_k=40),
    SamplingParams(top_k=1500),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.9999),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.01),
    SamplingParams(temperature=8.0, top_p=0.5),
    SamplingParams(temperature=1e-3, top_k=3),
]


def test_uniforms_are_the_published_stream_and_look_uniform() -> None:
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0):
        for position in (0, 1, 77, 2**31 - 2):
            assert rows.uniform(seed, position) == twin.uniform(seed, position)

    for numbers in (
        np.array([rows.uniform(0, position) for position in range(50_000)]),
        np.array([rows.uniform(seed, 17) for seed in range(50_000)]),
    ):
        counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
        assert ((counts - 500) ** 2 / 500).sum() < 149  # 99 degrees of freedom: p = 0.001
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.017


@pytest.mark.parametrize("num", [1, 5, 40, 1000, 4097])
@pytest.mark.parametrize("scale", [0, 1, 30])
def test_what_is_kept(num: int, scale: int) -> None:
    """Of equal ones, of which there are many, the first; against a stable sort of all."""
    rng = np.random.default_rng(num)
    values = np.round(rng.normal(size=num) * scale).astype(np.float32) / 3
    order = np.argsort(-values, kind="stable")
    for k in {1, 2, num // 100, num // 2, num - 1} - {0, num}:
        if 0 < k < num:
            assert rows.likeliest(values, k).tolist() == sorted(order[:k].tolist())
    weights = np.exp(values - values.max())
    ends = np.sort(weights)[::-1].cumsum(dtype=np.float64)
    for p in (1e-9, 0.3, 0.9, 0.99999):
        count = int((ends < ends[-1] * p).sum()) + 1
        kept = rows.nucleus(weights, p).tolist()
        assert kept in [sorted(order[:n].tolist()) for n in (count - 1, count, count + 1)], "but for the last digits"


@pytest.mark.parametrize("vocab", [5, 128, 129, 700])
def test_choice_is_the_inverse_of_the_summed_weights(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for number in (0.0, 1 - 2.0**-40, *rng.random(200)):
        logits = rng.normal(size=vocab).astype(np.float32) * 2
        weights = np.exp(logits - logits.max())
        weights[weights < 0.01] = 0
        found = rows.choose(weights, number)
        assert found == twin.choice(weights.astype(np.float64), number)
        assert weights[found] > 0


def draw(logits: torch.Tensor, params: list[SamplingParams], position: int) -> list[int]:
    """Row i by its own params and the seed i."""
    settings = records([(mine, row, 0, 0) for row, mine in enumerate(params)])
    words = torch.from_numpy(settings.view(np.int32).reshape(len(params), RECORD_WORDS).copy())
    slots = torch.arange(len(params), dtype=torch.int32)
    found = torch.empty_like(slots)
    rows.draw_by_rows(logits, words, slots, torch.full_like(slots, position), found)
    return found.tolist()


@pytest.mark.parametrize("vocab", [1, 3, 127, 129, 5000, 49152])
def test_the_same_tokens_as_the_twin(vocab: int) -> None:
    params = PARAMS * 4
    logits = torch.randn(len(params), vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    before = logits.clone()
    for position in range(3):
        found = draw(logits, params, position)
        wanted = [
            twin.choice(twin.weights(row, mine), twin.uniform(seed, position))
            if mine.temperature
            else int(row.argmax())
            for seed, (row, mine) in enumerate(zip(logits.double().numpy(), params, strict=True))
        ]
        differing = sum(mine != other for mine, other in zip(found, wanted, strict=True))
        assert differing <= 1, "the last digits of a weight may decide, but hardly ever"
    assert torch.equal(before, logits)


def test_a_row_is_drawn_the_same_beside_others_and_alone() -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(top_p=0.8, top_k=500)] * 6
    together = draw(logits, params, 3)
    for row in range(6):
        others = logits.roll(1, 0)
        others[row] = logits[row]
        assert draw(others, params, 3)[row] == together[row]
        assert draw(logits[: row + 1], params[: row + 1], 3)[row] == together[row]


@pytest.mark.parametrize("num_top", [1, 5, 63])
def test_reported_alternatives_do_not_depend_on_what_others_ask_for(num_top: int) -> None:
    """Of equal logits, of which there are many, the first ids; the sum of all is that of a row by itself."""
    logits = (torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 4).round()
    logits[2, 7] = float("nan")
    tokens = torch.tensor([5, 0, 7, 999])
    together, most = (logprobs(logits, tokens, num_top=num) for num in (num_top, 64))
    for row in (0, 1, 3):
        alone = logprobs(logits[row : row + 1], tokens[row : row + 1], num_top=num_top)
        order = np.argsort(-logits[row].numpy(), kind="stable")
        assert together.top_ids_NK[row].tolist() == order[:num_top].tolist() == most.top_ids_NK[row, :num_top].tolist()
        assert torch.equal(together.top_NK[row], alone.top_NK[0])
        assert torch.equal(together.chosen_N[row], alone.chosen_N[0])
