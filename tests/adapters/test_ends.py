"""Adapters of a model's ends say what PEFT says, by modules and by the CPU's own stack, beside rows that have none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood import LLM, SamplingParams
from sapwood.arch import declare
from sapwood.arch.shard import shard
from sapwood.base.errors import ModelError
from sapwood.base.plan import Rows
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.hub.files import open_files
from sapwood.nn.adapted import Bank
from sapwood.nn.load import load_weights
from tests import models
from tests.adapters import peft, test_native
from tests.adapters.made import Adapted
from tests.adapters.test_peft import TOKENS, adapted, close
from tests.nn import native
from tests.parallel import meet

BOTH = "head", "embed"
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("llama", {"target_modules": ["lm_head"]}),
    "with others": ("llama", {"target_modules": ["lm_head", "q_proj", "down_proj"], "use_rslora": True}),
    "direction": ("llama", {"target_modules": ["lm_head", "v_proj"], "use_dora": True}),
    "tied": ("llama-tied", {"target_modules": ["lm_head", "o_proj"]}),
    "tied direction": ("llama-tied", {"target_modules": ["lm_head"], "use_dora": True}),
    "scaled": ("granite", {"target_modules": ["lm_head", "q_proj"]}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ends")
    for family in ("llama", "llama-tied", "granite", "gpt2", "gemma3"):
        models.save(family, made / family)
    return made


@pytest.mark.parametrize("kind", HEADS)
def test_heads(folder: Path, tmp_path: Path, kind: str) -> None:
    family, fields = HEADS[kind]
    model = models.make(family)
    path = peft.save(model, tmp_path / "adapter", **fields)
    wanted, plain = peft.logits(model, path, TOKENS), peft.logits(model, None, TOKENS)
    made = adapted(folder / family, ends=("head",))
    close(made.logits(path, TOKENS), wanted, plain)
    assert (made.logits(None, TOKENS) - plain).abs().max() < 1e-4 * float(plain.abs().max())
    stack = test_native.Adapted(folder / family, ends=("head",))
    alone = stack.logits((0, 0, TOKENS, path))[0]
    close(alone, wanted, plain)
    together = stack.logits((1, 0, TOKENS[:9], None), (0, 0, TOKENS, path), (2, 0, TOKENS[:5], path))
    assert torch.equal(together[1], alone) and torch.equal(together[2], alone[:5])
    assert torch.equal(together[0], stack.logits((1, 0, TOKENS[:9], None))[0])


EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("llama", {"target_modules": ["embed_tokens"]}),
    "with others": ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "use_rslora": True}),
    "tied": ("llama-tied", {"target_modules": ["embed_tokens", "o_proj"]}),
    "both of one": ("llama-tied", {"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 7}}),
    "multiplied": ("granite", {"target_modules": ["embed_tokens", "q_proj"]}),
    "another name": ("gpt2", {"target_modules": ["wte", "c_attn"]}),
    "scaled by itself": ("gemma3", {"target_modules": ["embed_tokens"]}),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings(folder: Path, tmp_path: Path, kind: str) -> None:
    family, fields = EMBEDDINGS[kind]
    model = models.make(family)
    path = peft.save(model, tmp_path / "adapter", **fields)
    plain = peft.logits(model, None, TOKENS)
    made = adapted(folder / family, ends=BOTH)
    close(made.logits(path, TOKENS), peft.logits(model, path, TOKENS), plain)
    assert (made.logits(None, TOKENS) - plain).abs().max() < 1e-4 * float(plain.abs().max())
    assert torch.equal(made.logits(path, TOKENS, slot=2), made.logits(path, TOKENS)), "slots are alike"


RANKS: dict[str, dict[str, Any]] = {
    "heads": {"target_modules": ["lm_head", "o_proj"], "use_dora": True},
    "embeddings": {"target_modules": ["lm_head", "embed_tokens", "o_proj"]},
}


@pytest.mark.parametrize("kind", RANKS)
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_two_ranks(folder: Path, tmp_path: Path, family: str, kind: str) -> None:
    """Each has its part of the vocabulary."""
    model = models.make(family)
    path = peft.save(model, tmp_path / "adapter", **RANKS[kind])
    files = open_files(folder / family, name=family)
    decoder = declare(files.config)

    def logits(mesh: Any) -> torch.Tensor:
        made = Adapted(shard(decoder, rank=mesh.rank, size=mesh.size), mesh=mesh, ends=BOTH)
        load_weights(made.model, files)
        return made.logits(path, TOKENS)

    first, second = meet.ranks(2, logits)
    close(first, peft.logits(model, path, TOKENS), peft.logits(model, None, TOKENS))
    assert torch.equal(first, second)


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path, module: str) -> None:
    from safetensors.torch import load_file, save_file

    path = peft.save(models.make("llama"), tmp_path / "adapter", target_modules=["lm_head", "embed_tokens"])
    tensors = load_file(path / "adapter_model.safetensors")
    name = f"base_model.model.{module}.base_layer.weight"
    tensors[name] = tensors[name][1:].contiguous()
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"its vocabulary is another"):
        adapted(folder / "llama", ends=BOTH).logits(path, TOKENS)


def test_directions_of_embeddings_are_refused(folder: Path, tmp_path: Path) -> None:
    path = peft.save(models.make("llama"), tmp_path / "adapter", target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(ModelError, match=r"magnitude.* is not supported: the embedding is changed, by plain LoRA"):
        adapted(folder / "llama", ends=BOTH).logits(path, TOKENS)


ENGINES = [("auto", "lm_head"), ("off", "lm_head"), ("auto", "embed_tokens")]


@pytest.mark.parametrize(("kernels", "module"), ENGINES)
def test_an_engine(tiny_model: Path, tmp_path: Path, kernels: str, module: str) -> None:
    """What is drawn, and what is said of prompts, is by each row's own ends."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model)
    path = peft.save(model, tmp_path / "head", target_modules=[module, "q_proj"])
    options = {"device": "cpu", "kv_cache_memory": "16M", "kv_cache_dtype": "float32", "cpu_kernels": kernels}
    llm = LLM(str(tiny_model), lora_modules=(str(path),), **options)
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    prompts = ["The quick brown fox", "jumps over", "the lazy dog"]
    names = ["head", None, "head"]
    for name, found in zip(names, llm.generate(prompts, params, lora=names), strict=True):
        tokens = [*found.prompt_token_ids, *found.token_ids]
        wanted = peft.logits(model, None if name is None else path, tokens).log_softmax(-1)
        said = [one.logprob for one in (*found.prompt_logprobs, *found.outputs[0].logprobs)]
        right = [float(wanted[place, token]) for place, token in enumerate(tokens[1:])]
        assert said == pytest.approx(right, abs=2e-4), name
    (told,) = llm.generate(prompts[0], params, lora="head", return_logits=True)
    wanted = peft.logits(model, path, [*told.prompt_token_ids, *told.token_ids[:-1]])
    np.testing.assert_allclose(told.outputs[0].logits, wanted.numpy(), atol=2e-4)


def test_the_embedding_has_room_where_an_adapter_is_named_that_changes_it(tiny_model: Path, tmp_path: Path) -> None:
    """On a CPU modules of PyTorch compute the model then, and it is said why."""
    from transformers import LlamaForCausalLM

    native.machine()
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    path = peft.save(model, tmp_path / "embedding", target_modules=["embed_tokens"])
    options = {"model": str(tiny_model), "device": "cpu", "kv_cache_memory": "16M"}
    launched = launch(from_options({**options, "lora_modules": (f"one={path}",)}))
    launched.engine.executor.shutdown()
    (told,) = (line for line in launched.facts.decisions if line.startswith("computed_by = "))
    assert "modules of PyTorch (an adapter of --lora-modules changes the embedding" in told
    llm = LLM(**options, enable_lora=True)
    (found,) = llm.generate("a", SamplingParams(max_tokens=1), lora=str(path))
    assert re.search(r"embed_tokens.* where --lora-modules names an adapter", str(found.outputs[0].error))


def test_tokens_are_sorted_where_there_is_no_host() -> None:
    """Of a step of two rows with adapters and one without, five tokens of which the head is asked for."""
    bank = Bank(
        declare(models.make("llama").config.to_dict()),
        num_slots=3,
        rank=4,
        num_requests=4,
        device=torch.device("cpu"),
        ends=("head",),
    )
    bank._on_host = False
    bank.give(np.arange(4, dtype=np.int32), np.array([2, -1, 0, -1], np.int32))
    zeros = np.zeros(3, np.int32)
    slots, counts = np.array([0, 1, 2], np.int32), np.array([3, 2, 1], np.int32)
    bank.begin(Rows(0, 0, slots, zeros, counts, zeros, zeros.astype(np.int64)))
    bank.plan(native.batch_of([(0, 0, [5, 6, 7]), (1, 0, [5, 6]), (2, 0, [5])], groups=1))
    lanes = bank._head_lanes
    with bank.heads(torch.tensor([5, 2, 4, 0, 3], dtype=torch.int32)):
        assert lanes.open and lanes.sorted is not None
        order_T, starts_S, ends_S = lanes.sorted
        rows = [order_T[start:end].tolist() for start, end in zip(starts_S, ends_S, strict=True)]
        assert rows == [[0], [], [1, 3]]
    assert not lanes.open
