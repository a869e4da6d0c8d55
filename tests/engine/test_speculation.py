"""The drafters that a configuration asks for, through whole engines: every request says what it says without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.executor import local
from tests import models
from tests.engine.test_drafts import KINDS, Said, same, say
from tests.engine.whole import prompts_that_share

Requests = list[tuple[list[int], SamplingParams]]
DRAFTERS = ("prediction", "tree", "ngram")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all sizes are said to cost the same, so that whatever may be right is fed."""

    def time_steps(worker: object, trials: Sequence[Trial], **options: Any) -> list[float]:
        return [1.0] * len(trials)

    monkeypatch.setattr(local, "time_steps", time_steps)


def requests(count: int = 6) -> Requests:
    """Prompts that repeat themselves, some of them twice, with every kind of sampling."""
    prompts = [(prompt * 3)[:90] for prompt in prompts_that_share(count)]
    return [(prompts[i // 2 * 2], KINDS[i % len(KINDS)]) for i in range(count)] * 2


def predicted(mine: Requests, said: Said) -> Requests:
    """The same, predicting what is said but for a token here and there."""
    found = []
    for number, ((prompt, params), (tokens, *_)) in enumerate(zip(mine, said, strict=True)):
        guess = [token if place % 7 != number % 7 else 5 for place, token in enumerate(tokens)]
        found.append((prompt, msgspec.structs.replace(params, prediction=tuple(guess))))
    return found


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"speculation": "prediction", "depth": 0}),
        ("llama", {"speculation": "tree", "depth": 1, "max_num_seqs": 2, "kv_cache_memory": "16M"}),
        ("llama", {"speculation": "ngram", "depth": 2, "num_speculative_tokens": 3}),
        ("llama", {"speculation": "auto", "depth": 1, "max_total_tokens": 240, "page_size": 16}),
        ("llama", {"speculation": "auto", "depth": 0, "quantization": "int8", "kv_cache_dtype": "int8"}),
        ("gemma3", {"speculation": "auto", "depth": 1, "page_size": 4, "max_num_batched_tokens": 32}),
    ],
    ids=str,
)
def test_every_request_says_what_it_says_without(
    family: str, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    if device == "cuda" and "quantization" in options:
        pytest.skip("a format of the CPU's own kernels")
    model = models.save(family, tmp_path)
    shape = {name: options[name] for name in ("quantization", "kv_cache_dtype", "page_size") if name in options}
    mine = requests()
    wanted, plain = say(model, mine, device=device, **shape)
    found, counters = say(model, predicted(mine, wanted), device=device, **options)
    same(found, wanted)
    asked = DRAFTERS if options["speculation"] == "auto" else (options["speculation"],)
    assert {name for name in DRAFTERS if f"drafts_{name}" in counters} == set(asked)
    accepted = sum(counters[f"accepted_drafts_{name}"] for name in asked)
    assert 0 < accepted <= sum(counters[f"drafts_{name}"] for name in asked)
    if options["depth"] < 2 and "max_total_tokens" not in options and "max_num_seqs" not in options:
        assert counters["steps"] < plain["steps"]


def test_drafts_are_measured_and_told_of(tiny_model: Path) -> None:
    """With steps timed as they are: whatever is fed, the same is said."""
    mine = [([70, 71, 72] * 6, params) for params in KINDS]
    wanted, _ = say(tiny_model, mine)
    same(say(tiny_model, mine, speculation="auto")[0], wanted)
