"""Models that keep states, through whole engines: in pieces, behind cached prefixes, preempted, drafted, they say what transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood.base.sampling import SamplingParams
from tests import models
from tests.engine.test_drafts import Said, drafted, same, say
from tests.engine.whole import prompts_that_share

PROMPTS = prompts_that_share(7)
REQUESTS = [(prompt, SamplingParams(max_tokens=9, temperature=0, logprobs=0)) for prompt in PROMPTS]
SHORT = {
    "page_size": 8,
    "max_total_tokens": 240,
    "max_num_batched_tokens": 27,
    "max_num_seqs": 4,
    "kv_cache_memory": 2**25,
}


def check(family: str, said: Said) -> None:
    """Every token's logprob is transformers' behind the same prompt and answer."""
    for prompt, (tokens, _, logprobs) in zip(PROMPTS, said, strict=True):
        scores = models.logits(family, prompt + tokens).log_softmax(-1)[len(prompt) - 1 : -1]
        right = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert logprobs == pytest.approx(right, abs=1e-4)


@pytest.fixture(scope="module", params=["lfm2", "mamba2", "qwen3-next", "falcon-h1"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, models.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("depth", [0, 1])
def test_a_crowd_with_little_memory(saved: tuple[str, Path], depth: int) -> None:
    family, path = saved
    said, counters = say(path, REQUESTS, depth=depth, **SHORT)
    check(family, said)
    assert counters["cached_tokens"] > 0 and counters.get("copied_pages", 0) == 0


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        (0.7, {"depth": 0, "kv_cache_memory": 2**25}),
        (0.5, {"depth": 1, **SHORT}),
        (1.0, {"depth": 2, "page_size": 2, "kv_cache_memory": 2**25}),
    ],
    ids=str,
)
def test_drafts(saved: tuple[str, Path], truth: float, options: dict[str, Any]) -> None:
    family, path = saved
    wanted, _ = say(path, REQUESTS, kv_cache_memory=2**25)
    found, _ = say(path, REQUESTS, stakes=drafted(wanted, truth), **options)
    check(family, found)
    same(found, wanted)
