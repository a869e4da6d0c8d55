"""Engines of two processes: they say what one says, and end as one when one of them does."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sapwood import LLM, Grammar, SamplingParams
from sapwood.base.errors import ModelError
from sapwood.executor.ranks import Ranks
from tests import models
from tests.engine.test_renewal import other
from tests.waiting import eventually

OPTIONS: dict[str, Any] = {"device": "cpu", "max_model_len": 200, "max_num_seqs": 4, "threads": 1}
PROMPTS = ["The quick brown fox", "The quick brown dog jumps", "A", "The quick brown fox jumps over" * 3, "zebra"]
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=2)
DIGITS = SamplingParams(max_tokens=16, temperature=1.0, seed=3, grammar=Grammar.regex("[0-9]{3}-[a-f]{4}"))
DRAWN = SamplingParams(max_tokens=16, temperature=1.0, seed=4, presence_penalty=0.5, prompt_logprobs=1)
PARAMS = [GREEDY, GREEDY, DIGITS, DRAWN, GREEDY]


def said(llm: LLM) -> list[tuple[list[int], str]]:
    found = llm.generate(PROMPTS, PARAMS)
    assert all(output.error is None for generation in found for output in generation.outputs)
    return [(output.token_ids, output.text) for generation in found for output in generation.outputs]


@pytest.fixture(scope="module")
def wanted(tiny_model: Path) -> list[tuple[list[int], str]]:
    return said(LLM(str(tiny_model), **OPTIONS))


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> LLM:
    """Pages for two long requests, so that some have to make room, and drafts that one model makes for itself."""
    options = OPTIONS | {"max_total_tokens": 320, "speculative_model": str(tiny_model), "speculation": "ngram,draft"}
    return LLM(str(tiny_model), tensor_parallel_size=2, **options)


def test_two_say_what_one_says(pair: LLM, wanted: list[tuple[list[int], str]]) -> None:
    assert said(pair) == wanted
    assert said(pair) == wanted, "behind prefixes that are there"
    counters = pair._engine.stats().counters
    assert counters["cached_tokens"] > 0
    assert isinstance(pair._engine.executor, Ranks)


def test_both_sleep_and_take_other_weights(pair: LLM, wanted: list[tuple[list[int], str]], tmp_path: Path) -> None:
    model = Path(pair.config.model.model)
    for level in (2, 1):
        pair.sleep(level=level)
        pair.wake_up()
        assert said(pair) == wanted
    new = other(model, tmp_path / "new")
    assert pair.update_weights(new) == "1"
    assert said(pair) == said(LLM(str(new), **OPTIONS))
    with pytest.raises(ModelError, match="is not there"):
        pair.update_weights(tmp_path / "nowhere")
    pair.update_weights(model)
    assert said(pair) == wanted


def test_what_a_rank_cannot_load_is_told(tmp_path: Path) -> None:
    path = models.save("llama", tmp_path)
    next(path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read"):
        LLM(str(path), tensor_parallel_size=2, **OPTIONS)


def test_a_rank_that_is_killed_ends_the_engine(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), tensor_parallel_size=2, **OPTIONS)
    executor = llm._engine.executor
    assert isinstance(executor, Ranks)
    other: Any = executor._others[1]
    os.kill(other._process.pid, signal.SIGKILL)
    assert eventually(other.poll) == -signal.SIGKILL
    (generation,) = llm.generate(["Hello"], [GREEDY])
    assert "rank 1 has ended (signal 9)" in str(generation.outputs[0].error)
