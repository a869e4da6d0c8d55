"""Every family's logits against transformers on tiny random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.nn import forward

TOKENS = np.random.default_rng(0).integers(3, 199, size=70).tolist()


@pytest.fixture(scope="session", params=list(models.MODELS))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, models.save(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_are_those_of_transformers(saved: tuple[str, Path]) -> None:
    family, path = saved
    ours, theirs = forward.logits(forward.load(path), TOKENS), models.logits(family, TOKENS)
    assert theirs.std() > 0.1, "logits this flat would hide differences"
    assert (ours - theirs).abs().max() < 1e-4
