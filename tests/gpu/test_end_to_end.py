"""Whole engines on a GPU against whole engines on the CPU: greedy tokens of random prompts that share prefixes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch

pytestmark = pytest.mark.gpu


def outputs(model: Path, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    base = {"model": str(model), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 4096, "max_num_seqs": 8}
    engine, _ = launch(from_options(base | options))
    found: dict[int, list[int]] = {id: [] for id in range(len(prompts))}
    for id, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
        assert engine.submit(Submit(id, prompt, params)) is None
    while not engine.idle:
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                found[id].append(token)
            for delta in news.deltas:
                assert delta.error is None
                found[delta.id] += delta.tokens
    engine.executor.shutdown()
    return [found[id] for id in range(len(prompts))]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"])
def test_greedy_tokens_equal_the_cpus(family: str, tmp_path: Path) -> None:
    from tests.models import save

    model = save(family, tmp_path)
    rng = random.Random(0)
    stem = [rng.randrange(3, 190) for _ in range(50)]
    prompts = [
        stem[: rng.randint(1, 50)] + [rng.randrange(3, 190) for _ in range(rng.randint(1, 20))] for _ in range(12)
    ]
    cpu = outputs(model, prompts, device="cpu", attention_backend="reference", depth=0)
    for depth in (0, 1, 2):
        gpu = outputs(model, prompts, device="cuda", depth=depth, max_num_batched_tokens=48)
        assert gpu == cpu


def test_smollm2_speaks(smollm2: Path) -> None:
    from sapwood import LLM

    llm = LLM(str(smollm2), device="cuda", max_model_len=2048)
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0))[0]
    assert "Paris" in answer.text
