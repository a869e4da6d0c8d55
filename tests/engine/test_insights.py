"""Hidden states, logits and experts of every position: those of transformers, however a prompt is cut and whatever is cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, Qwen3MoeForCausalLM

from sapwood import LLM, RequestError, SamplingParams
from tests import models
from tests.tiny import TINY, write_bytes_model

PROMPT = "The quick brown fox jumps over the lazy dog."
ALL = {"return_hidden_states": True, "return_logits": True}
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
SMALL = {"device": "cpu", "kv_cache_memory": "16M", "max_num_seqs": 4, "max_num_batched_tokens": 16}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), **SMALL)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    write_bytes_model(path)
    fields = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "vocab_size": TINY["vocab_size"]}
    models.build("Qwen3MoeConfig", "Qwen3MoeForCausalLM", fields, seed=3).save_pretrained(path)
    return path


@torch.inference_mode()
def test_they_are_those_of_transformers(llm: LLM, tiny_model: Path) -> None:
    right = LlamaForCausalLM.from_pretrained(tiny_model, torch_dtype=torch.float32)
    cold, again, plain = (llm.generate(PROMPT, GREEDY, **returns)[0] for returns in (ALL, ALL, {}))
    assert cold.token_ids == again.token_ids == plain.token_ids
    assert again.cached_tokens == 0 < plain.cached_tokens, "what is told is computed; others find that"
    tokens = [*cold.prompt_token_ids, *cold.token_ids[:-1]]
    wanted = right(torch.tensor([tokens]), output_hidden_states=True)
    for found in (cold.outputs[0], again.outputs[0]):
        assert found.hidden_states is not None and found.logits is not None and found.routed_experts is None
        np.testing.assert_allclose(found.hidden_states, wanted.hidden_states[-1][0].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.logits, wanted.logits[0].numpy(), atol=1e-4)
    assert plain.outputs[0].hidden_states is None


def test_half_of_the_bytes(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, return_dtype="float16", n=2, seed=1, **ALL)
    whole = llm.generate(PROMPT, GREEDY, **ALL)[0].outputs[0]
    assert whole.logits is not None
    for output in llm.generate([PROMPT] * 3, params)[1].outputs:
        assert output.logits is not None and output.logits.dtype == np.float16
        assert output.logits.shape == (len(whole.logits) - 3, llm.facts.vocab_size)
        np.testing.assert_allclose(output.logits, whole.logits[:-3], atol=1e-2)


@torch.inference_mode()
def test_experts_are_those_of_transformers(mixture: Path) -> None:
    llm = LLM(str(mixture), cpu_kernels="off", **SMALL)
    found = llm.generate(PROMPT, GREEDY, return_routed_experts=True)[0]
    tokens = torch.tensor([[*found.prompt_token_ids, *found.token_ids[:-1]]])
    routers = Qwen3MoeForCausalLM.from_pretrained(mixture)(tokens, output_router_logits=True).router_logits
    wanted = torch.cat([logits.topk(3).indices for logits in routers], dim=1)
    experts = found.outputs[0].routed_experts
    assert experts is not None and experts.dtype == np.int32
    assert experts.tolist() == wanted.tolist(), "those of the first layer, then those of the second"


def test_what_cannot_be_told_is_refused(llm: LLM, mixture: Path) -> None:
    with pytest.raises(RequestError, match="this model has no experts") as refused:
        llm.generate(PROMPT, GREEDY, return_routed_experts=True)
    assert refused.value.param == "return_routed_experts"
    with pytest.raises(RequestError, match="return_dtype must be one of"):
        llm.generate(PROMPT, SamplingParams(return_dtype="int4", return_logits=True))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="return_nothing"):
        llm.generate(PROMPT, GREEDY, return_nothing=True)


def test_the_cpus_own_kernels_do_not_tell_of_experts(mixture: Path) -> None:
    llm = LLM(str(mixture), **SMALL)
    if "routed_experts" in llm.facts.insights:
        pytest.skip("the library is not built here")
    with pytest.raises(RequestError, match="start with --cpu-kernels off"):
        llm.generate(PROMPT, GREEDY, return_routed_experts=True)
