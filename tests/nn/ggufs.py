"""GGUF files written from the tiny models, the way that a converter lays tensors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import models

_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "llama": {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    "phi3": {
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
}
_INNER["qwen2"] = _INNER["llama"]
_INNER["qwen3"] = _INNER["llama"] | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_INNER["gemma3"] = _INNER["qwen3"] | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_SPARSE = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_INNER["qwen2moe"] = _INNER["qwen2"] | _SPARSE
_INNER["qwen3moe"] = _INNER["qwen3"] | _SPARSE


def write(
    family: str,
    path: Path,
    *,
    architecture: str | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    norms: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    leave_out: str = "",
    skip: str | tuple[str, ...] = (),
    **metadata: int | float | str,
) -> Path:
    """Write one of `models.MODELS`, matrices stored as `kind`, vectors as `norms`, without the tensor `leave_out`.

    `metadata` is added, its keys with __ for a dot, after the architecture's entries `skip` have been left out.
    `edit` has the last word on all that.
    """
    architecture = architecture or family.replace("-moe", "moe").split("-")[0]
    model = models.make(family)
    writer = gguf.GGUFWriter(path, architecture)
    _add_sizes(writer, model.config)
    for key in (skip,) if isinstance(skip, str) else skip:
        writer.kv_data[0].pop(f"{architecture}.{key}", None)
    for key, value in metadata.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add: Any = adders[type(value)]
        add(name, value)
    edit(writer)
    tied = model.config.tie_word_embeddings
    for name, weight in _apart(model.state_dict()):
        if name == leave_out or (tied and name == "lm_head.weight"):
            continue
        values = _laid_out(architecture, name, weight.numpy(), model.config)
        stored = kind if values.ndim > 1 and "mlp.gate." not in name else norms  # routers are left as they are
        writer.add_tensor(_gguf_name(architecture, name), gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _apart(weights: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """With the stacks of experts' gates and ups in two, and names as in a checkpoint."""
    for name, weight in weights.items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), weight.chunk(2, dim=1), strict=True):
                yield name.replace("gate_up_proj", f"{part}.weight"), half.contiguous()
        else:
            yield name + ".weight" if name.endswith("experts.down_proj") else name, weight


def _gguf_name(architecture: str, name: str) -> str:
    stem, param = name.rsplit(".", 1)
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{param}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_INNER[architecture][inner]}.{param}"


def laid_out_in_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads with the dimensions side by side that are half a head apart."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _laid_out(architecture: str, name: str, values: np.ndarray, config: Any) -> np.ndarray:
    for stem, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if architecture == "llama" and stem in name:  # the dimensions that rotate together, side by side
            return laid_out_in_pairs(values, heads)
    if architecture == "gemma3" and "norm" in name:
        return values + 1
    return values
