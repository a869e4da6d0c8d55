"""Families beyond those of `tests.models`: for each the classes of transformers, and fields that make its parts matter.

A family whose code is nowhere but in its repository is made from one with the same mathematics, its config and its tensors
named as that repository has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Fields = dict[str, Any]
Tensors = dict[str, Any]

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 1.5, 2.0, 4.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.5,
}
_GEMMA4 = {
    "num_hidden_layers": 6,
    "head_dim": 32,
    "global_head_dim": 48,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "tie_word_embeddings": True,
}
_HUNYUAN = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}


def _turned(**fields: Any) -> Fields:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **fields}}


_SIGMOID = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_EVERYWHERE = {name: value for name, value in _SIGMOID.items() if name != "first_k_dense_replace"}
_GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.1}

BREADTH: Mapping[str, tuple[str, str, Fields]] = MappingProxyType({
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    ),
    "vaultgemma": (
        "VaultGemmaConfig",
        "VaultGemmaForCausalLM",
        {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "gemma4": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {**_GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 16,
         "vocab_size_per_layer_input": 200, "final_logit_softcapping": 3.0},
    ),
    "gemma4-moe": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {**_GEMMA4, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "enable_moe_block": True,
         "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 32, "hidden_size_per_layer_input": 0},
    ),
    "gemma4-dense": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {**_GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        {"num_hidden_layers": 6, "head_dim": 32, "sliding_window": 8, "num_kv_shared_layers": 2, "laurel_rank": 8,
         "layer_types": ["sliding_attention", "full_attention"] * 3, "activation_sparsity_pattern": [0.7] * 3 + [0.0] * 3,
         "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 190, "intermediate_size": [96] * 3 + [80] * 3,
         "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    ),
    "phi4-mini": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 32, "tie_word_embeddings": True},
    ),
    "cohere": ("CohereConfig", "CohereForCausalLM", {"use_qk_norm": True, "tie_word_embeddings": True, "logit_scale": 0.3}),
    "cohere2": (
        "Cohere2Config",
        "Cohere2ForCausalLM",
        {"head_dim": 24, "sliding_window": 8, "num_hidden_layers": 4, "tie_word_embeddings": True, "logit_scale": 0.3},
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", {}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "olmo3": (
        "Olmo3Config",
        "Olmo3ForCausalLM",
        {"sliding_window": 8, "num_hidden_layers": 4, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
        }},
    ),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.1},
    ),
    "hyperclovax": (
        "HyperCLOVAXConfig",
        "HyperCLOVAXForCausalLM",
        {"embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.1},
    ),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {"no_rope_layers": [1, 0], "tie_word_embeddings": True}),
    "smollm3-4": ("SmolLM3Config", "SmolLM3ForCausalLM", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "glm": ("GlmConfig", "GlmForCausalLM", {"head_dim": 24, **_turned(partial_rotary_factor=0.5)}),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", {"head_dim": 24, **_turned(partial_rotary_factor=0.5)}),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM", {"num_hidden_layers": 4, "sliding_window": 8}),
    "exaone4-full": ("Exaone4Config", "Exaone4ForCausalLM", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "stablelm": (
        "StableLmConfig",
        "StableLmForCausalLM",
        {"use_qkv_bias": True, "qk_layernorm": True, **_turned(partial_rotary_factor=0.25)},
    ),
    "stablelm-parallel": ("StableLmConfig", "StableLmForCausalLM", {"use_parallel_residual": True}),
    "phi": ("PhiConfig", "PhiForCausalLM", _turned(partial_rotary_factor=0.5)),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {"sliding_window": 12, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"tie_word_embeddings": True}),
    "gpt-bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", {"tie_word_embeddings": True}),
    "gpt-bigcode-heads": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", {"multi_query": False}),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {"rotary_dim": 8}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _turned(partial_rotary_factor=0.25)),
    "gpt-neox-straight": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 64, "tie_word_embeddings": True}),
    "falcon-7b": ("FalconConfig", "FalconForCausalLM", {"bias": True, "num_kv_heads": 4}),
    "falcon-40b": (
        "FalconConfig",
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
    ),
    "falcon-rw": (
        "FalconConfig",
        "FalconForCausalLM",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4,
         "attn_implementation": "sdpa"},  # the other way adds what falls with distance twice
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"num_attention_heads": 6, "hidden_size": 96, "tie_word_embeddings": True}),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {"hidden_size": 96, "num_attention_heads": 6, "max_seq_len": 256, "tie_word_embeddings": True},
    ),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", {"head_dim": 16, **_turned(partial_rotary_factor=0.5)}),
    "arcee": ("ArceeConfig", "ArceeForCausalLM", {"head_dim": 24}),
    "jais2": ("Jais2Config", "Jais2ForCausalLM", {"head_dim": 16}),
    "seed-oss": ("SeedOssConfig", "SeedOssForCausalLM", {"head_dim": 24, "attention_out_bias": True}),
    "ernie": ("Ernie4_5Config", "Ernie4_5ForCausalLM", {"head_dim": 24, "use_bias": True, "tie_word_embeddings": True}),
    "helium": ("HeliumConfig", "HeliumForCausalLM", {"head_dim": 16}),
    "hunyuan": ("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", {"head_dim": 24, "rope_parameters": _HUNYUAN}),
    "cwm": ("CwmConfig", "CwmForCausalLM", {"num_hidden_layers": 5, "sliding_window": 8, "head_dim": 16}),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 96, "head_dim": 32, "sliding_window": 8,
         "num_hidden_layers": 3,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
                             "truncate": False}},
    ),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32}),
    "glm4-moe": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {**_SIGMOID, "head_dim": 24, "use_qk_norm": True, "attention_bias": True, **_turned(partial_rotary_factor=0.5)},
    ),
    "solar-open": ("SolarOpenConfig", "SolarOpenForCausalLM", {**_EVERYWHERE, "head_dim": 24}),
    "k-exaone": (
        "ExaoneMoeConfig",
        "ExaoneMoeForCausalLM",
        {"num_hidden_layers": 4, "head_dim": 24, "sliding_window": 8, "num_experts": 12, "num_experts_per_tok": 3, "n_group": 4,
         "topk_group": 2, "moe_intermediate_size": 32, "num_shared_experts": 2},
    ),
    "dots1": ("Dots1Config", "Dots1ForCausalLM", {**_SIGMOID, "head_dim": 24}),
    "minimax-m2": (
        "MiniMaxM2Config",
        "MiniMaxM2ForCausalLM",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32, "head_dim": 24,
         **_turned(partial_rotary_factor=0.5)},
    ),
    "ernie-moe": (
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        {"head_dim": 24, "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "tie_word_embeddings": True},
    ),
    "hunyuan-moe": (
        "HunYuanMoEV1Config",
        "HunYuanMoEV1ForCausalLM",
        {"head_dim": 24, "num_experts": 8, "moe_topk": 3, "intermediate_size": 32, "rope_parameters": _HUNYUAN},
    ),
    "phimoe": (
        "PhimoeConfig",
        "PhimoeForCausalLM",
        {"num_local_experts": 6, "intermediate_size": 32, "attention_bias": True, "lm_head_bias": True,
         "router_jitter_noise": 0.3},
    ),
    "granite-moe": (
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {**_GRANITE, "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 32},
    ),
    "granite-moe-shared": (
        "GraniteMoeSharedConfig",
        "GraniteMoeSharedForCausalLM",
        {**_GRANITE, "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 32, "shared_intermediate_size": 64},
    ),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {"num_hidden_layers": 4, "head_dim": 24, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_local_experts": 4,
         "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "floor_scale": 8,
         "attn_scale": 0.3},
    ),
    "ministral3": (
        "Ministral3Config",
        "Ministral3ForCausalLM",
        {"head_dim": 24, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}},
    ),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", {"sliding_window": 8, "head_dim": 24}),
})  # fmt: skip
"""Family -> class names, fields."""


def _exaone(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    names = {
        "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.attention.out_proj",
        "self_attn": "attn.attention", "mlp.gate_proj": "mlp.c_fc_0", "mlp.up_proj": "mlp.c_fc_1", "down_proj": "c_proj",
    }  # fmt: skip
    spelt = {
        "num_layers": fields.pop("num_hidden_layers"),
        "layer_norm_epsilon": fields.pop("rms_norm_eps"),
        "activation_function": fields.pop("hidden_act"),
    }
    return fields | spelt | {"architectures": ["ExaoneForCausalLM"]}, _renamed(tensors, names)


def _internlm2(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    """Queries, keys and values by turns, a KV head's at a time."""
    import torch

    names = {
        "embed_tokens": "tok_embeddings", "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "lm_head": "output",
    }  # fmt: skip
    kv_heads, hidden = fields["num_key_value_heads"], fields["hidden_size"]

    def fuse(parts: list[Any]) -> Any:
        return torch.cat([part.view(kv_heads, -1, hidden) for part in parts], dim=1).view(-1, hidden)

    tensors = _fused(_renamed(tensors, names), "attention.wqkv", fuse)
    return fields | {"architectures": ["InternLM2ForCausalLM"], "bias": False}, tensors


def _baichuan(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    import torch

    tensors = _fused(tensors, "self_attn.W_pack", torch.cat)
    return fields | {"architectures": ["BaiChuanForCausalLM"]}, tensors


def _minicpm(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    scales = {
        "scale_emb": fields.pop("embedding_multiplier"),
        "scale_depth": fields.pop("residual_multiplier") * fields["num_hidden_layers"] ** 0.5,
        "dim_model_base": round(fields["hidden_size"] / fields.pop("logits_scaling")),
    }
    assert fields.pop("attention_multiplier") == 0.25, "as heads of 16 have it"
    return fields | scales | {"architectures": ["MiniCPMForCausalLM"]}, tensors


def _internlm3(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    return fields | {"architectures": ["InternLM3ForCausalLM"], "qkv_bias": False, "bias": False}, tensors


def _gemma4(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    """The text of a model that sees, whose other tensors are there too."""
    import torch

    tensors = {name.replace("model.", "model.language_model."): tensor for name, tensor in tensors.items()}
    tensors.pop("lm_head.weight")
    tensors["model.vision_tower.patches.weight"] = torch.zeros(2, 2)
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "vision_config": {"depth": 2}}
    return outer | {"text_config": {name: value for name, value in fields.items() if name != "architectures"}}, tensors


def _llama4(fields: Fields, tensors: Tensors) -> tuple[Fields, Tensors]:
    """The text of a model that sees, which transformers does not compute without images."""
    import torch

    tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    tensors["vision_model.patch_embedding.weight"] = torch.zeros(2, 2)
    outer = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "vision_config": {"hidden_size": 2},
    }
    return outer | {"text_config": {name: value for name, value in fields.items() if name != "architectures"}}, tensors


Rewrite = Callable[[Fields, Tensors], tuple[Fields, Tensors]]
_MULTIPLIED = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.25,
}
RENAMED: Mapping[str, tuple[str, str, Fields, Rewrite]] = MappingProxyType({
    "gemma4-whole": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {**_GEMMA4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 200},
        _gemma4,
    ),
    "llama4-whole": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {"head_dim": 24, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_local_experts": 4, "use_qk_norm": False,
         "no_rope_layers": [1, 0], "attention_chunk_size": 8, "floor_scale": 8},
        _llama4,
    ),
    "exaone3": ("LlamaConfig", "LlamaForCausalLM", {}, _exaone),
    "internlm2": ("LlamaConfig", "LlamaForCausalLM", {}, _internlm2),
    "internlm3": ("LlamaConfig", "LlamaForCausalLM", {"head_dim": 24}, _internlm3),
    "baichuan-7b": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 4}, _baichuan),
    "minicpm": ("GraniteConfig", "GraniteForCausalLM", _MULTIPLIED, _minicpm),
})  # fmt: skip
"""Family -> class names of its mathematics, fields, how its repository has its config and tensors."""


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _fused(tensors: Tensors, name: str, fuse: Callable[[list[Any]], Any]) -> Tensors:
    """The projections of queries, keys and values of each layer as one tensor."""
    found, parts = {}, {}
    for key, tensor in tensors.items():
        if key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            layer = key.split(".self_attn")[0]
            parts.setdefault(layer, []).append(tensor)
        else:
            found[key] = tensor
    return found | {f"{layer}.{name}.weight": fuse(three) for layer, three in parts.items()}
