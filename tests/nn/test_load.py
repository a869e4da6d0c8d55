"""Checkpoints that fit, in one file or several, and those that do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sapwood.arch import declare
from sapwood.arch.parts import Linear
from sapwood.base.errors import ModelError
from sapwood.hub.files import ModelFiles
from sapwood.nn.load import dummy_weights, load_weights
from tests import models
from tests.nn import forward, native

TOKENS = np.random.default_rng(2).integers(3, 199, size=20).tolist()
Tensors = dict[str, torch.Tensor]


def change(path: Path, edit: Callable[[Tensors], Any]) -> Path:
    """Edit the tensors of a saved model in place."""
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)
    return path


def test_sharded_checkpoint(tmp_path: Path) -> None:
    models.make("phi3").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = forward.logits(forward.load(tmp_path), TOKENS)
    assert (ours - models.logits("phi3", TOKENS)).abs().max() < 1e-4


def test_weights_are_converted_to_the_model_dtype_and_norms_stay_float32(tmp_path: Path) -> None:
    model = forward.load(models.save("gemma3", tmp_path), dtype=torch.bfloat16)
    assert model.blocks[0].ffn.down.weight.dtype == torch.bfloat16
    expected = models.make("gemma3").model.layers[0].input_layernorm.weight.detach() + 1
    assert torch.equal(model.blocks[0].mixer_norm.weight, expected)
    ours, theirs = forward.logits(model, TOKENS), models.logits("gemma3", TOKENS)
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.99


def test_rows_of_a_head_are_given_length_one(tmp_path: Path) -> None:
    """As Baichuan 2 has it: whatever their length in the checkpoint, on modules and on the CPU's kernels."""

    def stretch(tensors: Tensors) -> None:
        tensors["lm_head.weight"] *= torch.linspace(0.5, 3, 199)[:, None]

    path = change(models.save("baichuan-7b", tmp_path), stretch)
    config = models.config("baichuan-7b") | {"architectures": ["BaichuanForCausalLM"]}
    head = declare(config | {"vocab_size": 125696, "hidden_size": 4096, "num_attention_heads": 32}).head
    assert isinstance(head, Linear) and head.unit_rows
    plain = declare(config | {"architectures": ["BaiChuanForCausalLM"]})
    assert isinstance(plain.head, Linear)
    decoder = replace(plain, head=replace(plain.head, unit_rows=True))
    theirs = models.logits("baichuan-7b", TOKENS) / models.make("baichuan-7b").lm_head.weight.detach().norm(dim=1)
    model, packed = forward.empty(decoder), native.empty(decoder, native.machine())
    for one, logits in ((model, forward.logits), (packed, native.logits)):
        load_weights(one, forward.open_files(path, name="baichuan"))
        assert (logits(one, TOKENS) - theirs).abs().max() < 1e-4


def test_leaving_out_what_begins_all_names(tmp_path: Path) -> None:
    """As GPT-2 and BLOOM are published."""

    def shorten(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    model = forward.load(change(models.save("gpt2", tmp_path), shorten))
    assert (forward.logits(model, TOKENS) - models.logits("gpt2", TOKENS)).abs().max() < 1e-4


def test_computed_tables_scales_of_keys_and_copies_of_tied_weights_are_skipped(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(())
        tensors["model.layers.0.self_attn.v_proj.v_scale"] = torch.ones(())
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model = forward.load(change(models.save("llama-tied", tmp_path), add))
    assert model.head is None
    assert (forward.logits(model, TOKENS) - models.logits("llama-tied", TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_head_that_differs_is_used_though_the_config_ties_it(dtype: torch.dtype, tmp_path: Path) -> None:
    def double(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = (2 * tensors["model.embed_tokens.weight"]).to(dtype)

    model = forward.load(change(models.save("llama-tied", tmp_path), double))
    assert (forward.logits(model, TOKENS) - 2 * models.logits("llama-tied", TOKENS)).abs().max() < 1e-1


def lose(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("mlp.down_proj.weight")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose, r"2 missing: model\.layers\.0\.mlp\.down_proj\.weight"),
        (lambda t: t.update({"model.extra.weight": torch.zeros(3)}), r"1 left over: model\.extra\.weight"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(63)}), r"model\.norm\.weight is \[63\], wants \[64\]"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), "model.norm.weight holds"),
    ],
)
def test_tensors_that_do_not_fit_are_named(edit: Callable[[Tensors], Any], message: str, tmp_path: Path) -> None:
    path = change(models.save("qwen3", tmp_path), edit)
    with pytest.raises(ModelError, match=message):
        forward.load(path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    models.save("qwen2", tmp_path)
    whole = tmp_path / "model.safetensors"
    (tmp_path / "again.safetensors").write_bytes(whole.read_bytes())
    weight_map = dict.fromkeys(load_file(whole), whole.name) | {"x": "again.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="holds too"):
        forward.load(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_a_file_that_is_cut_off(size: int, tmp_path: Path) -> None:
    file = models.save("qwen2", tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        forward.load(ModelFiles("cut", tmp_path, "hf", models.config("qwen2"), {}))


def test_dummy_weights_follow_the_seed() -> None:
    def weights(seed: int) -> Tensors:
        model = forward.empty(declare(models.config("gemma3")))
        dummy_weights(model, seed)
        return dict(model.named_parameters())

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert first["embed.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert all((weight == 1).all() for name, weight in first.items() if "norm" in name)


def test_layers_behind_the_last_are_left_out(tmp_path: Path) -> None:
    """What a checkpoint has of them is for drafting, and another model's."""
    path = models.save("deepseek-v3", tmp_path, num_nextn_predict_layers=1)
    forward.load(change(path, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(4, 8)})))
    with pytest.raises(ModelError, match=r"1 left over: model\.layers\.4"):
        forward.load(change(path, lambda tensors: tensors.update({"model.layers.4.eh_proj.weight": torch.zeros(4, 8)})))
