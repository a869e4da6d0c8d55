"""Every step against its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.base.sampling import SamplingParams
from sapwood.sampling import steps
from sapwood.sampling.random import uniform
from tests.sampling import twin

VOCAB = 700


def make_logits(seed: int, rows: int = 4, vocab: int = VOCAB, *, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.mul(2).round().div(2) if ties else logits


def weights_of(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    rows = len(logits)
    weights = steps.soften(logits.clone(), torch.full((rows,), params.temperature))
    if params.top_k > 0:
        steps.top_k(weights, torch.full((rows,), params.top_k, dtype=torch.int32), max_k=params.top_k + 3)
    if params.top_p < 1.0:
        steps.top_p(weights, torch.full((rows,), params.top_p), num_candidates=16)
    if params.min_p > 0.0:
        steps.min_p(weights, torch.full((rows,), params.min_p))
    return weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_weights_are_those_of_the_twin(seed: int, ties: bool) -> None:
    draw = np.random.default_rng(seed)
    params = SamplingParams(
        temperature=float(draw.choice([0.01, 0.3, 1.0, 3.0])),
        top_k=int(draw.choice([0, 1, 2, 13, 300, VOCAB, 5000])),
        top_p=float(draw.choice([1e-6, 0.3, 0.9, 0.999, 1.0])),
        min_p=float(draw.choice([0.0, 0.05, 1.0])),
    )
    logits = make_logits(seed, ties=ties)
    found = weights_of(logits, params).numpy()
    for row, raw in zip(found, logits.numpy(), strict=True):
        wanted = twin.weights(raw.astype(np.float64), params)
        # Which of the last few ids is kept may hang on the last bit of a sum; how much is kept does not.
        assert abs(np.count_nonzero(row) - np.count_nonzero(wanted)) <= 1
        np.testing.assert_allclose(np.sort(row), np.sort(wanted), atol=2e-6 + wanted[wanted > 0].min() * 1.01)


def test_equal_tokens_are_kept_from_the_lowest_id() -> None:
    logits = torch.zeros(2, VOCAB)
    for params, num in (
        (SamplingParams(top_k=5), 5),
        (SamplingParams(top_p=10 / VOCAB - 1e-4), 10),
        (SamplingParams(top_p=400 / VOCAB - 1e-4), 400),  # more than the candidates
        (SamplingParams(top_p=1e-9), 1),
        (SamplingParams(min_p=1.0), VOCAB),
    ):
        kept = weights_of(logits, params)
        assert kept[:, :num].eq(1).all()
        assert kept[:, num:].eq(0).all()


def test_rows_with_small_and_large_nuclei_share_a_batch() -> None:
    logits = torch.stack([make_logits(1, 1)[0] * 5, torch.zeros(VOCAB), make_logits(2, 1)[0] * 5])
    together = steps.soften(logits.clone(), torch.ones(3))
    alone = together.clone()
    steps.top_p(together, torch.full((3,), 0.9), num_candidates=16)
    for row in alone.split(1):
        steps.top_p(row, torch.tensor([0.9]), num_candidates=VOCAB)
    assert torch.equal(together, alone)
    assert together.count_nonzero(-1)[0] < 16 < together.count_nonzero(-1)[1]


def test_a_step_with_much_to_remember_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = steps.soften(make_logits(3, rows=7), torch.ones(7))
    whole = weights.clone()
    steps.top_p(whole, torch.full((7,), 0.9), num_candidates=VOCAB)
    monkeypatch.setattr(steps, "_ELEMENTS", 2 * VOCAB)
    steps.top_p(weights, torch.full((7,), 0.9), num_candidates=VOCAB)
    assert torch.equal(weights, whole)


@pytest.mark.parametrize("seed", range(4))
def test_penalties_and_bias_and_forbidden_tokens(seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits = make_logits(seed, rows=3, vocab=40)
    params = [
        SamplingParams(
            repetition_penalty=float(draw.uniform(0.5, 2)),
            presence_penalty=float(draw.uniform(-2, 2)),
            frequency_penalty=float(draw.uniform(-2, 2)),
            logit_bias={int(token): float(draw.normal()) for token in draw.choice(40, 4, replace=False)},
        )
        for _ in range(3)
    ]
    lengths, prompt_lens, min_lens, stop_ids = [9, 1, 20], [3, 1, 19], [10, 1, 0], [7, 0]
    history = torch.from_numpy(draw.integers(0, 40, (3, 25)).astype(np.int32))
    wanted = [
        twin.edited(
            row.numpy(),
            mine,
            tokens=known[:length].tolist(),
            prompt_len=prompt_len,
            min_len=min_len,
            stop_ids=stop_ids,
        )
        for row, mine, known, length, prompt_len, min_len in zip(
            logits, params, history, lengths, prompt_lens, min_lens, strict=True
        )
    ]
    ids = torch.tensor([list(mine.logit_bias) for mine in params])
    rows = torch.arange(3).repeat_interleave(4)
    values = torch.tensor([list(mine.logit_bias.values()) for mine in params])
    steps.add_bias(logits, rows, ids.flatten(), values.flatten())
    steps.penalise(
        logits,
        history,
        torch.tensor(lengths),
        torch.tensor(prompt_lens),
        torch.tensor([mine.repetition_penalty for mine in params]),
        torch.tensor([mine.presence_penalty for mine in params]),
        torch.tensor([mine.frequency_penalty for mine in params]),
    )
    active = torch.tensor(lengths) < torch.tensor(min_lens)
    steps.forbid(
        logits,
        torch.arange(3).repeat_interleave(len(stop_ids)),
        torch.tensor(stop_ids * 3),
        active.repeat_interleave(len(stop_ids)),
    )
    np.testing.assert_allclose(logits.numpy(), np.stack(wanted), atol=1e-5)
    assert logits[0, 0] == logits[0, 7] == -torch.inf


def test_uniform_is_the_published_stream_and_looks_uniform() -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    positions = torch.tensor([0, 5, 7, 2**31, 1])
    wanted = [twin.uniform(s, p) for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)]
    assert uniform(seeds, positions).tolist() == wanted

    for numbers in (
        uniform(torch.zeros(100_000, dtype=torch.long), torch.arange(100_000)),
        uniform(torch.arange(100_000), torch.full((100_000,), 17)),
    ):
        counts = torch.histc(numbers.float(), bins=100, min=0, max=1)
        assert ((counts - 1000) ** 2 / 1000).sum() < 149  # 99 degrees of freedom: p = 0.001
        assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.012


@pytest.mark.parametrize("vocab", [5, 128, 700])
def test_choice_is_the_inverse_of_the_summed_weights(vocab: int) -> None:
    weights = steps.soften(make_logits(5, rows=500, vocab=vocab), torch.full((500,), 1.5))
    weights[weights < 0.01] = 0
    numbers = uniform(torch.arange(500), torch.zeros(500, dtype=torch.long))
    numbers[0], numbers[1] = 0.0, 1 - 2.0**-40
    found = steps.choose(weights, numbers).tolist()
    assert found == [
        twin.choice(row.double().numpy(), number.item()) for row, number in zip(weights, numbers, strict=True)
    ]
    assert weights[range(500), found].gt(0).all()


def test_frequencies_follow_the_weights() -> None:
    num = 50_000
    params = SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
    weights = weights_of(make_logits(8, rows=1), params)
    chosen = steps.choose(weights.expand(num, -1), uniform(torch.arange(num), torch.full((num,), 3)))
    wanted = twin.weights(make_logits(8, rows=1)[0].double().numpy(), params)
    likely = np.flatnonzero(wanted)
    counts = np.bincount(chosen.numpy(), minlength=VOCAB)
    expected = wanted[likely] / wanted.sum() * num
    assert counts.sum() == counts[likely].sum() == num
    statistic = ((counts[likely] - expected) ** 2 / expected).sum()
    degrees = len(likely) - 1
    assert degrees >= 3
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
