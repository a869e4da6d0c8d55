"""GGUF files of the wider families: written with the names that the gguf package has for them, the way that converters lay
tensors out, and read back to the logits of their models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest

from sapwood.base.errors import ModelError
from sapwood.nn.load import load_weights
from tests import models
from tests.nn import forward, native
from tests.nn.ggufs import laid_out_in_pairs

TOKENS = np.random.default_rng(1).integers(3, 199, size=60).tolist()
PAIRED = {"granite", "smollm3", "arcee", "minicpm", "olmo", "granitemoe"}
"""Architectures whose files have the dimensions that rotate together side by side, against the order of the checkpoint."""

_GROUPED: Mapping[str, Any] = MappingProxyType({
    "expert_count": 12, "expert_used_count": 3, "expert_feed_forward_length": 32, "expert_shared_count": 2,
    "leading_dense_block_count": 1, "expert_weights_scale": 1.5, "expert_weights_norm": True, "expert_gating_func": 2,
    "expert_group_count": 4, "expert_group_used_count": 2,
})  # fmt: skip
_CONVOLVED: Mapping[str, Any] = MappingProxyType({
    "attention.head_count_kv": [0, 2, 0], "attention.layer_norm_rms_epsilon": 1e-5, "shortconv.l_cache": 3,
})  # fmt: skip

WRITTEN: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType({
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "cohere": ("command-r", {"logit_scale": 0.3}),
    "cohere2": ("cohere2", {"logit_scale": 0.3, "attention.sliding_window": 8}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {"attention.scale": 0.1, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5},
    ),
    "minicpm": ("minicpm", {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5}),
    "smollm3-4": ("smollm3", {}),
    "glm4": ("glm4", {}),
    "exaone3": ("exaone", {}),
    "exaone4": (
        "exaone4",
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "phi": ("phi2", {}),
    "starcoder2": ("starcoder2", {"attention.sliding_window": 12}),
    "nemotron": ("nemotron", {}),
    "arcee": ("arcee", {}),
    "seed-oss": ("seed_oss", {}),
    "ernie": ("ernie4_5", {}),
    "hunyuan": ("hunyuan-dense", {}),
    "olmo": ("olmo", {}),
    "granite-moe": ("granitemoe", {
        "attention.scale": 0.1, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5,
        "expert_count": 6, "expert_used_count": 3,
    }),
    "gpt-oss": ("gpt-oss", {
        "expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 96, "attention.sliding_window": 8,
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
    }),
    "lfm2": ("lfm2", {**_CONVOLVED, "feed_forward_length": 64}),
    "lfm2-moe": ("lfm2moe", {
        **_CONVOLVED, "expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 48, "leading_dense_block_count": 1,
        "expert_weights_scale": 1.5, "expert_gating_func": 2,
    }),
    "olmoe": ("olmoe", {"expert_count": 8, "expert_used_count": 3}),
    "glm4-moe": ("glm4moe", {**_GROUPED, "nextn_predict_layers": 0}),
    "dots1": ("dots1", {**_GROUPED}),
    "minimax-m2": ("minimax-m2", {
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32, "expert_gating_func": 2,
    }),
    "ernie-moe": ("ernie4_5-moe", {
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32, "expert_shared_count": 2,
        "expert_shared_feed_forward_length": 48, "interleave_moe_layer_step": 1, "leading_dense_block_count": 1,
    }),
    "hunyuan-moe": ("hunyuan-moe", {
        "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32, "expert_shared_count": 1,
        "expert_shared_feed_forward_length": 32,
    }),
})  # fmt: skip
"""Family -> its name in such files, and its keys beside those that all have."""


def write(
    family: str,
    path: Path,
    tensors: Mapping[str, np.ndarray] = MappingProxyType({}),
    experts_as: str = "F32",
    **changed: Any,
) -> Path:
    """With these `tensors` beside the model's, and keys `changed`."""
    architecture, keys = WRITTEN[family]
    keys = keys | changed
    model = models.make(family)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, config, keys.get("nextn_predict_layers", 0))
    add_keys(writer, architecture, keys)
    number = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in models.published_tensors(family).items():
        if name.startswith("lm_head") and config.tie_word_embeddings:
            continue
        if experts := _of_experts(name, tensor.numpy(), turned=architecture == "gpt-oss"):
            for one, values in experts.items():
                kind = gguf.GGMLQuantizationType[experts_as if values.ndim > 2 else "F32"]
                writer.add_tensor(one, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
            continue
        stem, param = name.rsplit(".", 1)
        values = tensor.numpy()
        if stem.endswith("conv.conv"):
            values = values[:, 0]
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if architecture in PAIRED and stem.endswith(part):
                values = laid_out_in_pairs(values, heads)
        if architecture in ("gemma", "gemma2", "nemotron") and stem.endswith("norm") and param == "weight":
            values = values + 1
        found = names.get_name(stem) or names.get_name(f"{stem}.layer")  # as repositories have Granite's routers
        stem = found or {"lm_head": "output"}[stem]  # for models that are always tied it has none
        writer.add_tensor(f"{stem}.{param}", np.ascontiguousarray(values))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_keys(writer: gguf.GGUFWriter, architecture: str, keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        adders: dict[type, Any] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
            list: writer.add_array,
            str: writer.add_string,
        }
        adders[type(value)](f"{architecture}.{key}", value)


def _of_experts(name: str, values: np.ndarray, *, turned: bool = False) -> dict[str, np.ndarray]:
    """What becomes of a tensor of all experts of a layer: gate and up lie apart, and a row of offsets is no matrix. If it is `turned`,
    they take turns, and inputs come first."""
    layer = "".join(name.split(".")[2:3])
    param = "bias" if name.endswith("_bias") else "weight"
    if turned and ".experts." in name:
        values = values.swapaxes(1, -1) if param == "weight" else values
        if "gate_up" in name:
            both = {"gate": values[:, ::2], "up": values[:, 1::2]}
            return {f"blk.{layer}.ffn_{one}_exps.{param}": half for one, half in both.items()}
        return {f"blk.{layer}.ffn_down_exps.{param}": values}
    if name.endswith("self_attn.sinks"):
        return {f"blk.{layer}.attn_sinks.weight": values}
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
    if name.endswith("experts.down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": values}
    if name.endswith(("e_score_correction_bias", ".expert_bias")):
        return {f"blk.{layer}.exp_probs_b.bias": values.reshape(-1)}
    return {}


def add_sizes(writer: gguf.GGUFWriter, config: Any, more: int = 0) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + more)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        eps = (getattr(config, name, None) for name in ("layer_norm_eps", "norm_epsilon", "norm_eps"))
        writer.add_layer_norm_eps(next((one for one in eps if one is not None), 1e-5))
    scaled = rope.get("alpha", 1.0) ** (head_dim / (head_dim - 2))
    writer.add_rope_freq_base(rope["rope_theta"] * scaled)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))


@pytest.mark.parametrize("family", list(WRITTEN))
def test_a_file_has_the_logits_of_its_model(family: str, tmp_path: Path) -> None:
    path = write(family, tmp_path / "model.gguf")
    files = forward.open_files(path, name=family)
    if family == "gemma2":  # the scale of queries follows from the head size, where the tiny model has another
        files.config["query_pre_attn_scalar"] = 24
    assert (forward.logits(forward.load(files), TOKENS) - models.logits(family, TOKENS)).abs().max() < 1e-4


def test_blocks_that_draft_are_counted_and_passed_by(tmp_path: Path) -> None:
    """As files of GLM-4.5 have them behind the last one."""
    layer = models.make("glm4-moe").config.num_hidden_layers
    shapes = {"nextn.eh_proj": (64, 128), "nextn.enorm": (64,), "attn_q": (96, 64), "nextn.shared_head_norm": (64,)}
    more = {f"blk.{layer}.{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    model = forward.load(write("glm4-moe", tmp_path / "model.gguf", more, nextn_predict_layers=1))
    assert model.decoder.mtp is not None
    assert (forward.logits(model, TOKENS) - models.logits("glm4-moe", TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        ("dots1", {"expert_gating_func": 1}, "expert_gating_func: = 1 is not how"),
        ("hunyuan-moe", {"expert_shared_feed_forward_length": 48}, "expert_shared_feed_forward_length"),
        ("olmo", {"attention.clamp_kqv": 8.0}, "clamp_kqv.*not cut"),
    ],
)
def test_what_families_do_otherwise_is_refused(
    family: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        forward.open_files(write(family, tmp_path / "model.gguf", **changed), name=family)


def test_experts_of_gpt_oss_in_its_own_blocks(tmp_path: Path) -> None:
    """As its files have them, MXFP4: those of the model in between are of the same numbers, widened."""
    path = write("gpt-oss", tmp_path / "model.gguf", experts_as="MXFP4")
    model = forward.load(path)
    weight_XOI = model.blocks[1].ffn.down.weight
    stored = dict(models.published_tensors("gpt-oss"))["model.layers.1.mlp.experts.down_proj"].numpy().swapaxes(1, 2)
    kind = gguf.GGMLQuantizationType.MXFP4
    rounded = gguf.dequantize(gguf.quantize(np.ascontiguousarray(stored), kind), kind)
    np.testing.assert_array_equal(weight_XOI.numpy(), rounded)
    packed = native.empty(model.decoder, native.machine())
    load_weights(packed, forward.open_files(path, name="gpt-oss"))
    assert (native.logits(packed, TOKENS) - forward.logits(model, TOKENS)).abs().max() < 1e-4
