"""Adapters of a model's ends say what PEFT says, by modules and by the CPU's own stack, beside rows that have none."""

from __future__ import annotations

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
from sapwood.hub.files import open_files
from sapwood.nn.adapted import Bank
from sapwood.nn.load import load_weights
from tests import models
from tests.adapters import peft, test_native
from tests.adapters.made import Adapted
from tests.adapters.test_peft import TOKENS, adapted, close
from tests.nn.native import batch_of
from tests.parallel import meet

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
    for family in ("llama", "llama-tied", "granite"):
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


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_two_ranks(folder: Path, tmp_path: Path, family: str) -> None:
    """Each has its part of the vocabulary."""
    model = models.make(family)
    path = peft.save(model, tmp_path / "adapter", target_modules=["lm_head", "o_proj"], use_dora=True)
    files = open_files(folder / family, name=family)
    decoder = declare(files.config)

    def logits(mesh: Any) -> torch.Tensor:
        made = Adapted(shard(decoder, rank=mesh.rank, size=mesh.size), mesh=mesh, ends=("head",))
        load_weights(made.model, files)
        return made.logits(path, TOKENS)

    first, second = meet.ranks(2, logits)
    close(first, peft.logits(model, path, TOKENS), peft.logits(model, None, TOKENS))
    assert torch.equal(first, second)


def test_a_head_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = peft.save(models.make("llama"), tmp_path / "adapter", target_modules=["lm_head"])
    tensors = load_file(path / "adapter_model.safetensors")
    name = "base_model.model.lm_head.base_layer.weight"
    tensors[name] = tensors[name][1:].contiguous()
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"its vocabulary is another"):
        adapted(folder / "llama", ends=("head",)).logits(path, TOKENS)


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_an_engine(tiny_model: Path, tmp_path: Path, kernels: str) -> None:
    """What is drawn, and what is said of prompts, is by each row's own head."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model)
    path = peft.save(model, tmp_path / "head", target_modules=["lm_head", "q_proj"])
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
    bank.plan(batch_of([(0, 0, [5, 6, 7]), (1, 0, [5, 6]), (2, 0, [5])], groups=1))
    lanes = bank._head_lanes
    with bank.heads(torch.tensor([5, 2, 4, 0, 3], dtype=torch.int32)):
        assert lanes.open and lanes.sorted is not None
        order_T, starts_S, ends_S = lanes.sorted
        rows = [order_T[start:end].tolist() for start, end in zip(starts_S, ends_S, strict=True)]
        assert rows == [[0], [], [1, 3]]
    assert not lanes.open
