"""Families that keep states, as those of `tests.breadth`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_MAMBA = {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 24, "chunk_size": 32}

RECURRENT: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType({
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16},
    ),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", {**_MAMBA, "expand": 2}),
    "mamba2-limits": ("Mamba2Config", "Mamba2ForCausalLM", {**_MAMBA, "expand": 2, "time_step_limit": (0.1, 0.9)}),
})  # fmt: skip
