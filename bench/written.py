"""GGUF files of random weights in the shape of a mixture of experts, with the tokens of another file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from sapwood.hub.gguf import open_gguf


class Shape(NamedTuple):
    """Of Qwen3's mixtures. `used` of so many `experts` are chosen for a token."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    used: int
    inner: int


SHAPES = {"qwen3-moe-1b": Shape(1024, 16, 16, 4, 64, experts=64, used=8, inner=288)}
"""With 49,152 tokens 1.05 B parameters, of which a token's step multiplies 0.2 B."""


def write(shape: Shape, kind: gguf.GGMLQuantizationType, tokens_of: Path, path: Path) -> None:
    """Matrices are stored as `kind`, norms and routers in float32."""
    tokens = {key: value for key, value in open_gguf(tokens_of).metadata.items() if key.startswith("tokenizer.")}
    writer, random = gguf.GGUFWriter(path, "qwen3moe"), np.random.default_rng(0)
    _add_sizes(writer, shape)
    for key, value in tokens.items():
        if isinstance(value, list | np.ndarray):
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
        else:
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            add[type(value)](key, value)
    for name, size in _tensors(shape, len(tokens["tokenizer.ggml.tokens"])):
        plain = len(size) == 1 or "ffn_gate_inp" in name
        values: NDArray[np.float32] = np.ones(size, np.float32)
        if len(size) > 1:
            values = random.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)
        stored = gguf.GGMLQuantizationType.F32 if plain else kind
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner * shape.used)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.used)
    writer.add_expert_feed_forward_length(shape.inner)


def _tensors(shape: Shape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, without their ends, and sizes in numpy's order."""
    hidden, heads, kv_heads = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd", (vocabulary, hidden)
    for layer in range(shape.layers):
        for name, *size in (
            ("attn_norm", hidden),
            ("attn_q", heads, hidden),
            ("attn_k", kv_heads, hidden),
            ("attn_v", kv_heads, hidden),
            ("attn_q_norm", shape.head_dim),
            ("attn_k_norm", shape.head_dim),
            ("attn_output", hidden, heads),
            ("ffn_norm", hidden),
            ("ffn_gate_inp", shape.experts, hidden),
            ("ffn_gate_exps", shape.experts, shape.inner, hidden),
            ("ffn_up_exps", shape.experts, shape.inner, hidden),
            ("ffn_down_exps", shape.experts, hidden, shape.inner),
        ):
            yield f"blk.{layer}.{name}", tuple(size)
    yield "output_norm", (hidden,)
    yield "output", (vocabulary, hidden)
