"""Families that keep states, as those of `tests.breadth`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_DELTA = {
    "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 24, "linear_value_head_dim": 16,
    "head_dim": 32,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
_H1 = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_d_state": 24, "mamba_expand": 2,
    "embedding_multiplier": 3.0, "lm_head_multiplier": 0.7, "mlp_multipliers": [0.6, 1.3], "key_multiplier": 0.8,
    "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [0.9, 1.2, 0.8, 1.1, 1.3],
}  # fmt: skip
_MAMBA = {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 24, "chunk_size": 32}

RECURRENT: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType({
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16},
    ),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", {**_MAMBA, "expand": 2}),
    "mamba2-limits": ("Mamba2Config", "Mamba2ForCausalLM", {**_MAMBA, "expand": 2, "time_step_limit": (0.1, 0.9)}),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
         "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 24, "mamba_n_groups": 2, "mamba_expand": 2,
         "num_local_experts": 0, "shared_intermediate_size": 80, "position_embedding_type": "nope",
         "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    "nemotron-h": (
        "NemotronHConfig",
        "NemotronHForCausalLM",
        {"layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention"], "head_dim": 32,
         "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 24, "n_groups": 2},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {**_DELTA, **_EXPERTS, "mlp_only_layers": [1]},
    ),
    "qwen3.5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", _DELTA),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM", {**_DELTA, **_EXPERTS}),
    "lfm2-moe": (
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1,
         "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "routed_scaling_factor": 1.5},
    ),
    "granite-hybrid-moe": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
         "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 24, "mamba_n_groups": 2, "mamba_expand": 2,
         "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "shared_intermediate_size": 80},
    ),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 12, "time_step_rank": 6}),
    "falcon-mamba": ("FalconMambaConfig", "FalconMambaForCausalLM", {"state_size": 12}),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2,
         "mamba_d_state": 12, "mamba_dt_rank": 6},
    ),
    "falcon-h1": ("FalconH1Config", "FalconH1ForCausalLM", {**_H1, "mamba_n_groups": 2}),
    "falcon-h1-normed": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {**_H1, "mamba_n_groups": 1, "mamba_rms_norm": True, "tie_word_embeddings": True},
    ),
    "falcon-h1-gated": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {**_H1, "mamba_n_groups": 2, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    ),
    "bamba": (
        "BambaConfig",
        "BambaForCausalLM",
        {"num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 24,
         "mamba_n_groups": 1, "mamba_expand": 2},
    ),
})  # fmt: skip
