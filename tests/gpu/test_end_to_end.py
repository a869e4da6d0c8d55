"""Whole engines on a GPU against whole engines on the CPU: greedy tokens of random prompts that share prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.base.sampling import SamplingParams
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
