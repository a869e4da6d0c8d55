"""Requests with adapters of many sizes in one batch, in engines with few slots: each has the answers of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from sapwood import LLM, ConfigError, RequestError, SamplingParams
from sapwood.llm import Generation
from tests.adapters import peft
from tests.adapters.some import adapters_for

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


@pytest.mark.parametrize("slots", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
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


def test_what_is_promised_stays_at_hand(tiny_model: Path, tmp_path: Path) -> None:
    """Also where the host's memory has to make room for another in between, and the files are gone."""
    first, second, third = (shutil.copytree(one, tmp_path / one.name) for one in adapters_for(tiny_model))
    llm = LLM(str(tiny_model), enable_lora=True, max_loras=1, max_cpu_loras=2, **BASE)
    found = [llm.generate(PROMPTS[0], GREEDY, lora=str(one))[0].token_ids for one in (first, second)]
    shutil.rmtree(first)
    again = llm.generate([PROMPTS[0], PROMPTS[1]], GREEDY, lora=[str(first), str(third)])
    assert not any(one.outputs[0].error for one in again)
    assert again[0].token_ids == found[0]


def test_names_directories_and_what_there_is_not(made: Made) -> None:
    llm = LLM(str(made.base), enable_lora=True, kv_cache_dtype="float32", **BASE)
    path = str(made.paths[0])
    with pytest.raises(RequestError, match="there is no adapter 'sql', by that name or as a directory; known are none"):
        llm.generate("a", GREEDY, lora="sql")
    by_path = llm.generate(PROMPTS[0], GREEDY, lora=path)[0]
    llm.adapters.load("sql", path)
    by_name = llm.generate(PROMPTS[0], GREEDY, lora=["sql"])[0]
    assert by_name.token_ids == by_path.token_ids and by_name.cached_tokens > 0, "the same files are the same adapter"
    assert llm._engine.stats().counters["adapter_reads"] == 1 and llm.adapters.names == [path, "sql"]
    with pytest.raises(RequestError, match="1 prompts but 2 adapters"):
        llm.generate("a", GREEDY, lora=["sql", None])
    llm.adapters.unload("sql")
    with pytest.raises(RequestError, match="there is no adapter"):
        llm.generate("a", GREEDY, lora="sql")


def test_one_that_cannot_be_used_ends_the_start(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lora-modules nowhere=.*cannot be read"):
        LLM(str(made.base), lora_modules=(f"nowhere={tmp_path}/nowhere",), **BASE)
    with pytest.raises(ConfigError, match="its rank is 5, and there is room for 2: raise --max-lora-rank"):
        LLM(str(made.base), lora_modules=(str(made.paths[2]),), max_lora_rank=2, **BASE)


def test_without_adapters_requests_have_none(tiny_model: Path, made: Made) -> None:
    llm = LLM(str(tiny_model), **BASE)
    with pytest.raises(RequestError, match="enable_lora=True"):
        llm.generate("a", GREEDY, lora=str(made.paths[0]))
