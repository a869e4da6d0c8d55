"""A model and its layer that predicts one token more, both trained on a language of few words: drafts are right as often as it is sure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.executor import local
from tests import mtp
from tests.engine.test_drafts import same, say
from tests.engine.test_mtp import _features

FIRST, LETTERS = 10, 40
STEPS, ROWS, LENGTH = 120, 16, 24


def words() -> list[list[int]]:
    """None of which begins like another."""
    random = np.random.default_rng(0)
    return [[FIRST + first, *(FIRST + random.integers(10, LETTERS, 5)).tolist()] for first in range(8)]


def texts(random: np.random.Generator, rows: int, length: int) -> list[list[int]]:
    """Words one after another, in any order: where one begins nobody knows which, and behind that everybody does."""
    known = words()
    return [
        [letter for one in random.integers(0, len(known), length) for letter in known[one]][:length]
        for _ in range(rows)
    ]


def trained(family: str) -> mtp.Made:
    made = mtp.make.__wrapped__(family)
    modules = [made.model, made.layer, made.join, *made.norms]
    weights = list({id(one): one for module in modules for one in module.parameters()}.values())
    adam, random = torch.optim.Adam(weights, lr=4e-3), np.random.default_rng(1)
    for _ in range(STEPS):
        ids = torch.tensor(texts(random, ROWS, LENGTH))
        hidden = made.model.model(ids, use_cache=False).last_hidden_state
        loss = _loss(made.model.lm_head(hidden[:, :-1]), ids[:, 1:])
        ahead = torch.stack([_features(made, row[1:].tolist(), own[:-1]) for row, own in zip(ids, hidden, strict=True)])
        loss = loss + _loss(made.model.lm_head(ahead[:, :-1]), ids[:, 2:])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return made


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


@pytest.mark.slow
def test_what_it_has_learned_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(worker: object, trials: Sequence[Trial], **options: Any) -> list[float]:
        return [1.04 if trial.ahead else 1.0 for trial in trials]

    monkeypatch.setattr(local, "time_steps", free)
    made = trained("glm4-moe")
    model = mtp.save("glm4-moe", tmp_path, made)
    params = SamplingParams(max_tokens=36, temperature=0.8, seed=1, ignore_eos=True)
    mine = [(text, params) for text in texts(np.random.default_rng(2), 4, 13)]
    wanted, plain = say(model, mine)
    found, counters = say(model, mine, speculation="mtp", num_speculative_tokens=3)
    same(found, wanted)
    assert counters["accepted_drafts_mtp"] > 0.6 * counters["drafts_mtp"] > 20
    assert counters["steps"] < 0.7 * plain["steps"]
    likely = {pair for word in words() for pair in itertools.pairwise(word)}
    pairs = [pair for tokens, *_ in found for pair in itertools.pairwise(tokens)]
    assert sum(pair in likely for pair in pairs) > 0.7 * len(pairs), "it has learned the language"
