"""The wider families through whole engines: drafts, prefix hits and both ways to compute on CPUs change no token."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.base.sampling import SamplingParams
from tests import models
from tests.engine.test_drafts import drafted, same, say
from tests.engine.whole import prompts_that_share

FAMILIES = ["gemma2", "cohere", "gpt2", "bloom"]
"""Which together have the parts that reach farthest: caps, windows, distances, learned positions, blocks side by side."""

MINE = [(prompt, SamplingParams(max_tokens=16, temperature=0, logprobs=1)) for prompt in prompts_that_share(5)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_is_said_in_every_way(family: str, tmp_path: Path) -> None:
    model = models.save(family, tmp_path)
    wanted, _ = say(model, MINE, prefix_caching=False)
    same(say(model, MINE, cpu_kernels="off")[0], wanted)
    same(say(model, MINE, stakes=drafted(wanted, truth=0.7))[0], wanted)
