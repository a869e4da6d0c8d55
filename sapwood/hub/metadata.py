"""A GGUF file's metadata as a Hugging Face config. What is not understood is refused by name, as in a config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from sapwood.arch.families import FAMILIES
from sapwood.arch.family import Family, Gguf
from sapwood.arch.gguf import GgufKeys
from sapwood.base.errors import ModelError
from sapwood.hub.gguf import GgufFile, GgufTensor


def family_of(gguf: GgufFile, families: Sequence[Family] = FAMILIES) -> tuple[Family, Gguf]:
    """The family of a file, and how such files have it. Raises ModelError for one that is not known."""
    name = gguf.metadata.get("general.architecture")
    for family in families:
        if family.gguf is not None and family.gguf.architecture == name:
            return family, family.gguf
    known = ", ".join(sorted(family.gguf.architecture for family in families if family.gguf is not None))
    raise ModelError(f"{gguf.path}: general.architecture = {name!r} is not supported; these are: {known}.")


def config_of(gguf: GgufFile, families: Sequence[Family] = FAMILIES) -> dict[str, Any]:
    """The metadata in the keys of a config.json. Raises ModelError for a model that is not supported."""
    metadata, tensors = gguf.metadata, gguf.tensors
    if (count := metadata.get("split.count")) not in (None, 0, 1):
        raise ModelError(
            f"{gguf.path} is one of {count} parts of a split GGUF file (split.count), which cannot be read by itself: "
            "join the parts with `llama-gguf-split --merge`."
        )
    family, layout = family_of(gguf, families)
    m = GgufKeys(gguf, layout.architecture)
    heads = m.count("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": layout.architecture,
        "torch_dtype": _stored(tensors),
        "hidden_act": "silu",
        "vocab_size": _vocab_size(gguf),
        "hidden_size": m.count("embedding_length"),
        "intermediate_size": m.count("feed_forward_length"),
        "num_hidden_layers": m.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(m, heads),
        "head_dim": m.count("attention.key_length", m.count("embedding_length") // heads),
        "max_position_embeddings": m.count("context_length"),
        "rms_norm_eps": _epsilon(m),
        "tie_word_embeddings": "output.weight" not in tensors,
        **{
            f"{ours}_token_id": metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        },
    }
    if m.count("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise m.wrong("attention.value_length", "differs from key_length, which is not supported")
    config |= layout.fields(m, config)
    m.refuse_unread()
    return config


def _kv_heads(m: GgufKeys, heads: int) -> int:
    """Of layers that have some: a file may say of each how many."""
    stated = m.layers("attention.head_count_kv")
    some = set(stated.tolist()) - {0} if isinstance(stated, np.ndarray) else set()
    return int(some.pop()) if len(some) == 1 else m.count("attention.head_count_kv", heads)


def _epsilon(m: GgufKeys) -> float | None:
    """That of RMS norms; None in a file that has layer norms alone."""
    name = "attention.layer_norm_rms_epsilon"
    return None if m.get(name) is None and m.get("attention.layer_norm_epsilon") else m.number(name)


def _vocab_size(gguf: GgufFile) -> int:
    embeddings = gguf.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise ModelError(f"{gguf.path} has no token_embd.weight of two dimensions.")
    return embeddings.shape[0]


def _stored(tensors: Mapping[str, GgufTensor]) -> str:
    """What unquantised weights of this precision would be stored in."""
    kinds = {tensor.type for tensor in tensors.values() if len(tensor.shape) > 1}
    if kinds == {GGMLQuantizationType.F32}:
        return "float32"
    return "bfloat16" if GGMLQuantizationType.BF16 in kinds else "float16"
