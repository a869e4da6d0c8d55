"""Tiny random models of every family, made by transformers: what the engine's logits are compared with.

Each is small and odd on purpose: grouped heads, heads whose size is not hidden_size / num_attention_heads where the
family allows it, windows and ropes that matter within a few dozen tokens, weights large enough to tell differences.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.breadth import BREADTH, RENAMED
from tests.readers import READERS
from tests.recurrent import RECURRENT
from tests.unknown import UNKNOWN
from tests.within import WITHIN

_SIZES = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def _rope(**fields: Any) -> dict[str, Any]:
    return {"rope_theta": 10000.0, **fields}


_LLAMA3 = _rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
_YARN = _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

_STDS = {"sinks": 1.0, "gate_up_proj_bias": 4.0}
"""Of weights that would change little else: the biases let some gates be cut off."""

_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 32}

_LATENT = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 2.0,
}
_YARN_SHARP = {**_YARN, "mscale": 0.5, "mscale_all_dim": 0.7}

# family -> (class names without Config and ForCausalLM, fields)
MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "llama": ("LlamaConfig", "LlamaForCausalLM", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
        "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
        "llama-linear": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _rope(rope_type="linear", factor=4.0)}),
        "llama-llama3": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _LLAMA3}),
        "llama-yarn": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _YARN}),
        "mistral": ("MistralConfig", "MistralForCausalLM", {"head_dim": 32, "sliding_window": 16}),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
        "qwen2-window": (
            "Qwen2Config",
            "Qwen2ForCausalLM",
            {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
        "gemma3": (
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            {
                "num_hidden_layers": 4,
                "head_dim": 32,
                "query_pre_attn_scalar": 24,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": _GEMMA_ROPE,
                "tie_word_embeddings": True,
            },
        ),
        "mixtral": (
            "MixtralConfig",
            "MixtralForCausalLM",
            {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None},
        ),
        "qwen2-moe": (
            "Qwen2MoeConfig",
            "Qwen2MoeForCausalLM",
            {**_EXPERTS, "shared_expert_intermediate_size": 64},
        ),
        "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
        "qwen3-moe-steps": (
            "Qwen3MoeConfig",
            "Qwen3MoeForCausalLM",
            {**_EXPERTS, "num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        ),
        "deepseek-v2": (
            "DeepseekV2Config",
            "DeepseekV2ForCausalLM",
            {**_LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy", "rope_parameters": _YARN_SHARP},
        ),
        "deepseek-v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**_LATENT, "q_lora_rank": 24}),
        "minicpm3": (
            "MiniCPM3Config",
            "MiniCPM3ForCausalLM",
            {
                "num_hidden_layers": 3,
                "num_key_value_heads": 4,
                "kv_lora_rank": 32,
                "q_lora_rank": 24,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "scale_emb": 3.0,
                "scale_depth": 0.9,
                "dim_model_base": 32,
                "tie_word_embeddings": True,
            },
        ),
        "glm4-moe-lite": (
            "Glm4MoeLiteConfig",
            "Glm4MoeLiteForCausalLM",
            {**_LATENT, "q_lora_rank": 24, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        ),
        "phi3": (
            "Phi3Config",
            "Phi3ForCausalLM",
            {"sliding_window": 24, "rope_parameters": _rope(rope_type="default", partial_rotary_factor=0.5)},
        ),
    }
)


def _classes(family: str) -> tuple[str, str, dict[str, Any]]:
    if family in RENAMED:
        return RENAMED[family][:3]
    return {**MODELS, **BREADTH, **RECURRENT, **WITHIN, **UNKNOWN, **READERS}[family]


@functools.cache
def make(family: str) -> Any:
    """The transformers model of a family, float32, in evaluation mode; always the same weights."""
    return build(*_classes(family), seed=sum(map(ord, family)))


def build(config_name: str, model_name: str, fields: Mapping[str, Any], *, seed: int) -> Any:
    """A model of these classes, of the usual sizes where the fields say nothing else."""
    import torch
    import transformers

    kind = getattr(transformers, config_name)
    known = {*kind().to_dict(), *kind.attribute_map}
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    settings = kind(**{**sizes, "attn_implementation": "eager", **fields})
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() or name.split(".")[-2].startswith("ln_"):
                weight.add_(torch.randn_like(weight) * 0.2)
            else:
                weight.normal_(std=_STDS.get(name.split(".")[-1], 0.1))
        for name, offsets in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                offsets.normal_(std=0.1)
    return model


def config(family: str) -> dict[str, Any]:
    """What config.json of the model holds."""
    return _published(family)[0]


def published_tensors(family: str) -> dict[str, Any]:
    """The tensors by the names that the family's repository has for them."""
    return _published(family)[1]


def _published(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and tensors as the family's repository has them."""
    fields = make(family).config.to_dict() | {"architectures": [_classes(family)[1]]}
    tensors = dict(make(family).state_dict())
    return RENAMED[family][3](fields, tensors) if family in RENAMED else (fields, tensors)


def save(family: str, path: Path, **fields: Any) -> Path:
    """Write the model to `path` as a Hugging Face directory, with `fields` changed in config.json; return `path`."""
    make(family).save_pretrained(path)
    file = path / "config.json"
    if family in RENAMED:
        from safetensors.torch import save_file

        published, tensors = _published(family)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
        file.write_text(json.dumps(published))
    if fields:
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return path


def logits(family: str, tokens: list[int]) -> Any:
    """transformers' float32 logits [len(tokens), vocabulary]."""
    import torch

    with torch.inference_mode():
        return make(family)(torch.tensor([tokens]), use_cache=False).logits[0]
