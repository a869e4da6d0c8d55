"""Whole engines on a GPU against whole engines on the CPU: greedy tokens of random prompts that share prefixes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from tests.engine.whole import greedy, prompts_that_share
from tests.models import save

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"])
def test_greedy_tokens_equal_the_cpus(family: str, tmp_path: Path) -> None:
    model = save(family, tmp_path)
    prompts = prompts_that_share(12)
    cpu, _ = greedy(model, prompts, device="cpu", attention_backend="reference", depth=0)
    for depth in (0, 1, 2):
        gpu, _ = greedy(model, prompts, device="cuda", depth=depth, max_num_batched_tokens=48)
        assert gpu == cpu


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_logprobs_of_long_prompts_are_near_the_cpus(family: str, tmp_path: Path) -> None:
    """bfloat16, in steps large enough for cuDNN, against float32 by the reference."""
    model = save(family, tmp_path)
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 190) for _ in range(rng.randint(150, 240))] for _ in range(6)]
    expected = prompt_logprobs(model, prompts, device="cpu", dtype="float32", attention_backend="reference")
    found = prompt_logprobs(model, prompts, device="cuda", dtype="bfloat16")
    errors = torch.tensor(found) - torch.tensor(expected)
    assert errors.abs().mean() < 0.02
    assert errors.abs().max() < 0.15


def prompt_logprobs(model: Path, prompts: list[list[int]], **options: Any) -> list[float]:
    """Log probabilities of all prompts' tokens, one prompt after another."""
    engine, *_ = launch(
        from_options({"model": str(model), "max_total_tokens": 4096, "prefix_caching": False} | options)
    )
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    for id, prompt in enumerate(prompts):
        assert engine.submit(Submit(id, prompt, params)) is None
    scored: dict[int, list[float]] = {id: [] for id in range(len(prompts))}
    while not engine.idle:
        for news in engine.step():
            for delta in news.deltas:
                scored[delta.id] += [found.logprob for found in delta.prompt_logprobs or []]
    engine.executor.shutdown()
    return [logprob for id in range(len(prompts)) for logprob in scored[id]]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_restricted_tokens_equal_the_cpus(tiny_model: Path, depth: int) -> None:
    from sapwood import LLM, Grammar
    from tests.grammar.schemas import SCHEMAS

    names = ["flat", "nested", "function call", "enum of anything", "pattern"]
    params = [SamplingParams(max_tokens=200, temperature=0, grammar=Grammar.json(SCHEMAS[name])) for name in names]
    params += [SamplingParams(max_tokens=40, temperature=0, logprobs=1, grammar=Grammar.regex("[a-z ]{9,30}"))]
    params += [SamplingParams(max_tokens=60, temperature=0)]
    options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "max_total_tokens": 8192}
    texts = []
    for more in ({"device": "cpu"}, {"device": "cuda", "depth": depth}):
        llm = LLM(str(tiny_model), constrained_json_disable_any_whitespace=True, **options, **more)
        texts.append([one.token_ids for one in llm.chat([[{"role": "user", "content": "Hello!"}]] * 7, params)])
        assert llm._engine.stats().counters["forced_tokens"] > 0
    assert texts[0] == texts[1]


def test_smollm2_speaks(smollm2: Path) -> None:
    from sapwood import LLM

    llm = LLM(str(smollm2), device="cuda", max_model_len=2048)
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0))[0]
    assert "Paris" in answer.text
