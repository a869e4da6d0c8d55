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

from tests import models
from tests.nn import forward
from tests.nn.ggufs import laid_out_in_pairs

TOKENS = np.random.default_rng(1).integers(3, 199, size=60).tolist()
PAIRED = {"granite", "smollm3", "arcee", "minicpm"}
"""Architectures whose files have the dimensions that rotate together side by side, against the order of the checkpoint."""

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
})  # fmt: skip
"""Family -> its name in such files, and its keys beside those that all have."""


def write(family: str, path: Path) -> Path:
    architecture, keys = WRITTEN[family]
    model = models.make(family)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, config)
    for key, value in keys.items():
        adders: dict[type, Any] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
            list: writer.add_array,
        }
        adders[type(value)](f"{architecture}.{key}", value)
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in models.published_tensors(family).items():
        if name.startswith("lm_head") and config.tie_word_embeddings:
            continue
        stem, param = name.rsplit(".", 1)
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if architecture in PAIRED and stem.endswith(part):
                values = laid_out_in_pairs(values, heads)
        if architecture in ("gemma", "gemma2", "nemotron") and stem.endswith("norm") and param == "weight":
            values = values + 1
        writer.add_tensor(f"{names.get_name(stem)}.{param}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        eps = (getattr(config, name, None) for name in ("layer_norm_eps", "norm_epsilon", "norm_eps"))
        writer.add_layer_norm_eps(next(one for one in eps if one is not None))
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
