"""Logits with adapters are PEFT's, whatever they are made of and whatever they change."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.arch import declare
from sapwood.arch.parts import Linear, Place, walk
from sapwood.arch.shard import shard
from sapwood.base.errors import ModelError
from sapwood.base.plan import Rows
from sapwood.hub.files import open_files
from sapwood.nn.adapted import AdaptedWeights
from sapwood.nn.load import load_weights
from sapwood.quant.base import everywhere
from sapwood.quant.plain import Plain
from sapwood.quant.rounding import rounding
from tests import models
from tests.adapters import peft
from tests.adapters.made import Adapted
from tests.nn import forward
from tests.parallel import meet

TOKENS = np.random.default_rng(0).integers(3, 199, size=24).tolist()

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "r": 9},
    "directions": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 12},
        "alpha_pattern": {"v_proj": 3, "^model.layers.0.self_attn.q_proj": 40},
    },
    "some modules": {"target_modules": ["q_proj", "v_proj", "up_proj"], "layers_to_transform": [1]},
    "some directions": {"target_modules": ["k_proj", "o_proj", "gate_proj"], "use_dora": True, "use_rslora": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("base") / "llama")


def adapted(path: Path, **options: Any) -> Adapted:
    files = open_files(path, name=path.name)
    made = Adapted(declare(files.config), **options)
    load_weights(made.model, files)
    return made


def close(found: torch.Tensor, wanted: torch.Tensor, other: torch.Tensor) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    assert (found - wanted).abs().max() < 1e-4 * scale
    assert (wanted - other).abs().max() > 0.05 * scale, "an adapter this weak would show nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(base: Path, tmp_path: Path, kind: str) -> None:
    model, made = models.make("llama"), adapted(base)
    path = peft.save(model, tmp_path / "adapter", **KINDS[kind])
    plain = peft.logits(model, None, TOKENS)
    close(made.logits(path, TOKENS), peft.logits(model, path, TOKENS), plain)
    without = made.logits(None, TOKENS)
    assert (without - plain).abs().max() < 1e-4 * float(plain.abs().max())
    again = made.logits(path, TOKENS, slot=2)
    assert torch.equal(again, made.logits(path, TOKENS)), "slots are alike"


FAMILIES: dict[str, list[str]] = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],  # one A for queries, keys and values
    "glm": ["q_proj", "v_proj", "gate_up_proj"],
    "gpt-neox": ["query_key_value", "dense", "dense_h_to_4h"],  # whose heads take turns
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # stored the other way round
    "qwen2-moe": ["q_proj", "v_proj", "o_proj", "shared_expert.gate_proj", "shared_expert.down_proj"],
    "deepseek-v2": ["q_proj", "kv_a_proj_with_mqa", "o_proj"],
    "gemma4": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "mamba2": ["in_proj"],
    "qwen3-next": ["q_proj", "k_proj", "o_proj", "in_proj_qkvz"],  # gates are behind values, of the queries' module
    "granite": ["q_proj", "k_proj", "up_proj"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    model = models.make(family)
    made = adapted(models.save(family, tmp_path / family))
    path = peft.save(model, tmp_path / "adapter", target_modules=FAMILIES[family])
    wanted = peft.logits(model, path, TOKENS)
    close(made.logits(path, TOKENS), wanted, peft.logits(model, None, TOKENS))


@pytest.mark.parametrize("kind", ["plain", "directions"])
def test_two_ranks(base: Path, tmp_path: Path, kind: str) -> None:
    """Each has its part of the matrices, and rows' lengths are found together."""
    model = models.make("llama")
    path = peft.save(model, tmp_path / "adapter", **KINDS[kind])
    files = open_files(base, name="llama")
    decoder = declare(files.config)

    def logits(mesh: Any) -> torch.Tensor:
        made = Adapted(shard(decoder, rank=mesh.rank, size=mesh.size), mesh=mesh)
        load_weights(made.model, files)
        return made.logits(path, TOKENS)

    first, second = meet.ranks(2, logits)
    close(first, peft.logits(model, path, TOKENS), peft.logits(model, None, TOKENS))
    assert torch.equal(first, second)


def test_a_quantised_base(base: Path, tmp_path: Path) -> None:
    """What an adapter changes is what it changes of the rounded weights, lengths of rows included."""
    model = copy.deepcopy(models.make("llama"))
    made = adapted(base, method=rounding("int4", everywhere(Plain())))
    for path, linear in made.bank.linears.items():
        part = next(place for place in walk(made.bank.decoder) if place.path == path)
        set_rows(model, part, linear)
    for kind in ("plain", "directions"):
        adapter = peft.save(model, tmp_path / kind, **KINDS[kind])
        close(made.logits(adapter, TOKENS), peft.logits(model, adapter, TOKENS), peft.logits(model, None, TOKENS))


def set_rows(model: Any, place: Place, linear: AdaptedWeights) -> None:
    """Give transformers' Linears what ours multiplies by: its products with the identity, less its bias."""
    part = place.leaf
    assert isinstance(part, Linear)
    with torch.inference_mode():
        rows = (linear.base(torch.eye(part.inp)) - linear.base(torch.zeros(1, part.inp))).T
    for one, its in zip(part.parts, rows.split([one.size for one in part.parts]), strict=True):
        model.get_submodule(place.prefix + one.name).weight.data.copy_(its)


def test_a_merged_twin(base: Path, tmp_path: Path) -> None:
    """The model into which PEFT merges an adapter says the same without one."""
    import peft as theirs

    path = peft.save(models.make("llama"), tmp_path / "adapter", **KINDS["directions"])
    merged = theirs.PeftModel.from_pretrained(copy.deepcopy(models.make("llama")), str(path)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    twin = forward.load(tmp_path / "merged")
    found, wanted = adapted(base).logits(path, TOKENS), forward.logits(twin, TOKENS)
    assert (found - wanted).abs().max() < 1e-4 * float(wanted.abs().max())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too large a rank": ({"r": 17}, "its rank is 17, and there is room for 16: raise --max-lora-rank"),
    "embeddings": ({"target_modules": ["embed_tokens"]}, r"embed_tokens.* is not supported"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name(base: Path, tmp_path: Path, what: str) -> None:
    fields, why = REFUSED[what]
    path = peft.save(models.make("llama"), tmp_path / "adapter", **fields)
    made = adapted(base)
    with pytest.raises(ModelError, match=why):
        made.logits(path, TOKENS)


def test_another_model_s_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    path = peft.save(models.make("glm"), tmp_path / "adapter", target_modules=["gate_up_proj"])
    with pytest.raises(ModelError, match=r"the model has no Linear model.layers.0.mlp.gate_up_proj"):
        adapted(base).logits(path, TOKENS)


def test_adapters_of_experts_are_refused_by_name(tmp_path: Path) -> None:
    made = adapted(models.save("qwen2-moe", tmp_path / "base"))
    path = peft.save(models.make("qwen2-moe"), tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": ["mlp.experts.down_proj"]}))
    with pytest.raises(ModelError, match="target_parameters"):
        made.logits(path, TOKENS)


def test_the_heaviest_step_is_one_with_adapters(base: Path) -> None:
    """Whose memory is measured before the cache takes the rest; afterwards nobody has one."""
    made = adapted(base)
    row = Rows(0, 0, *(np.array([number], np.int32) for number in (0, 0, 1, 1)), np.zeros(1, np.int64))
    made.bank.lend(True)
    assert made.bank.begin(row)
    made.bank.lend(False)
    assert not made.bank.begin(row)
