"""Requests with adapters of many sizes in one batch, in engines with few slots: each has the answers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from sapwood import LLM, SamplingParams
from sapwood.llm import Generation
from tests.adapters import peft

PROMPTS = [f"{number}. The quick brown fox jumps over the lazy dog." for number in range(12)]
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0, prompt_logprobs=0)
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
BASE = {"device": "cpu", "kv_cache_memory": "16M", "max_num_seqs": 8}


class Made:
    """A model and some of its adapters, one a little larger than the one before."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        self.model = LlamaForCausalLM.from_pretrained(base)
        kinds = [
            {"r": 2},
            {"r": 3, "use_rslora": True},
            {"r": 5, "use_dora": True},
            {"r": 8, "target_modules": ["q_proj"]},
        ]
        self.paths = [
            peft.save(self.model, folder / f"adapter-{number}", seed=number, **fields)
            for number, fields in enumerate(kinds)
        ]
        self._loaded = {path.name: peft.load(self.model, path) for path in self.paths}

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(f"{path.name}={path}" for path in self.paths)

    def name(self, number: int) -> str | None:
        """Of a prompt's adapter: every fifth has none."""
        return None if number % 5 == 4 else self.paths[number % 5].name

    def check(self, found: Sequence[Generation]) -> None:
        """All that is said has the logprobs that PEFT gives it."""
        for number, generation in enumerate(found):
            name = self.name(number)
            tokens = [*generation.prompt_token_ids, *generation.token_ids]
            wanted = peft.logits(self.model if name is None else self._loaded[name], None, tokens).log_softmax(-1)
            said = [*generation.prompt_logprobs, *generation.outputs[0].logprobs]
            assert [one.token for one in said] == tokens[1:]
            right = [float(wanted[place, token]) for place, token in enumerate(tokens[1:])]
            assert [one.logprob for one in said] == pytest.approx(right, abs=2e-4), name
            assert generation.token_ids == wanted[generation.prompt_tokens - 1 : -1].argmax(-1).tolist()


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    return Made(tiny_model, tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("slots", [4, 1])
def test_a_mixture(made: Made, slots: int) -> None:
    """Also of more adapters than the device holds at once."""
    llm = LLM(str(made.base), lora_modules=made.modules, max_loras=slots, kv_cache_dtype="float32", **BASE)
    found = llm.generate(PROMPTS, PARAMS, lora=[made.name(number) for number in range(len(PROMPTS))])
    made.check(found)
    counters = llm._engine.stats().counters
    assert counters["adapter_reads"] == 4 and counters["adapter_slots"] == slots
    assert counters["adapter_evictions"] >= 4 - slots and counters["adapter_slots_used"] == 0
    again = llm.generate(PROMPTS[0], GREEDY, lora=made.paths[0].name)[0]
    assert again.token_ids == found[0].token_ids and again.cached_tokens > 0
    other = llm.generate(PROMPTS[0], GREEDY)[0]
    assert other.cached_tokens == 0, "an adapter's keys and values are its own"
    assert llm._engine.audit() == 0
