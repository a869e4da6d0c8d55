"""The steps that edit logits, against their slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.base.sampling import SamplingParams
from sapwood.sampling import steps
from tests.sampling import twin


def make_logits(seed: int, rows: int, vocab: int) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


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


def test_a_step_with_much_to_remember_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, random = make_logits(3, rows=7, vocab=700), torch.Generator().manual_seed(4)
    history = torch.randint(0, 700, (7, 30), generator=random, dtype=torch.int32)
    lengths = torch.randint(1, 30, (7,), generator=random)
    settings = [torch.rand(7, generator=random) + 0.5 for _ in range(3)]
    whole = logits.clone()
    steps.penalise(whole, history, lengths, lengths // 2, *settings)
    monkeypatch.setattr(steps, "_ELEMENTS", 2 * 700)
    steps.penalise(logits, history, lengths, lengths // 2, *settings)
    assert torch.equal(logits, whole)
