"""Logits of families that keep states against transformers: at once, and in pieces of any length."""

from __future__ import annotations

import numpy as np
import pytest

from tests import models
from tests.nn import forward
from tests.recurrent import RECURRENT

TOKENS = np.random.default_rng(0).integers(3, 199, size=100).tolist()


@pytest.mark.parametrize("family", list(RECURRENT))
def test_logits_are_those_of_transformers(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = models.save(family, tmp_path_factory.mktemp(family))
    ours, theirs = forward.logits(forward.load(path), TOKENS), models.logits(family, TOKENS)
    assert theirs.std() > 0.1, "logits this flat would hide differences"
    assert (ours - theirs).abs().max() < 1e-4
