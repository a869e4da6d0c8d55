"""A GGUF file's metadata as a Hugging Face config. What is not understood is refused by name, as in a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from sapwood.arch.parts import Llama3Scaling
from sapwood.arch.rope import llama3_divisor, yarn_attention_factor
from sapwood.base.errors import ModelError
from sapwood.hub.gguf import GgufFile, GgufTensor

_ARCHITECTURES = {
    "gemma3": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GEMMA3_PATTERN = 6  # every sixth layer is global, where the file does not say otherwise

# Keys of an architecture that say nothing about the mathematics of generation, or only what holds here anyway.
_INERT = frozenset({
    "attention.layer_norm_epsilon", "pooling_type", "rope.scaling.finetuned", "rope.scaling.original_context_length",
    "vocab_size",
})  # fmt: skip
_HOLDS = {"attention.causal": True, "tensor_data_layout": "Meta AI original pth"}


def config_of(gguf: GgufFile) -> dict[str, Any]:
    """The metadata in the keys of a config.json. Raises ModelError for a model that is not supported."""
    metadata, tensors = gguf.metadata, gguf.tensors
    if (count := metadata.get("split.count")) not in (None, 0, 1):
        raise ModelError(
            f"{gguf.path} is one of {count} parts of a split GGUF file (split.count), which cannot be read by itself: "
            "join the parts with `llama-gguf-split --merge`."
        )
    name = metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ModelError(f"{gguf.path}: general.architecture = {name!r} is not supported; these are: {known}.")
    m = _Metadata(gguf, name)
    m.refuse("expert_count", because="mixtures of experts are not supported")
    heads = m.count("attention.head_count")
    config = {
        "architectures": [_ARCHITECTURES[name]],
        "model_type": name,
        "torch_dtype": _stored(tensors),
        "hidden_act": "silu",
        "vocab_size": _vocab_size(gguf),
        "hidden_size": m.count("embedding_length"),
        "intermediate_size": m.count("feed_forward_length"),
        "num_hidden_layers": m.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": m.count("attention.head_count_kv", heads),
        "head_dim": m.count("attention.key_length", m.count("embedding_length") // heads),
        "max_position_embeddings": m.count("context_length"),
        "rms_norm_eps": m.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        **{
            f"{ours}_token_id": metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        },
    }
    if m.count("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise m.wrong("attention.value_length", "differs from key_length, which is not supported")
    config |= _FAMILY_FIELDS[name](m, config)
    m.refuse_unread()
    return config


class _Metadata:
    """The keys of a file's architecture; remembers which were read, so that the others can be refused by name."""

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self.gguf = gguf
        self._prefix = f"{architecture}."
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A value. An array of equal ones, one per layer, counts as that one."""
        self._read.add(name)
        value = self.gguf.metadata.get(self._prefix + name, default)
        if isinstance(value, np.ndarray):
            if len(values := set(value.tolist())) != 1:
                raise self.wrong(name, "differs between layers, which is not supported")
            return values.pop()
        return value

    def layers(self, name: str) -> Any:
        """A value that may be an array, one of each layer."""
        self._read.add(name)
        return self.gguf.metadata.get(self._prefix + name)

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; one that is 0 where there is a default is not said."""
        value = self.get(name)
        if default is not None and (value is None or value == 0):
            return default
        if value is None:
            raise self.wrong(name, "is missing")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.wrong(name, f"must be a positive number, got {value!r}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.number(name, default)
        if value != int(value):
            raise self.wrong(name, f"must be a whole number, got {value!r}")
        return int(value)

    def refuse(self, *names: str, because: str) -> None:
        """Refuse keys that are set to anything but 0 or nothing."""
        for name in names:
            if self.get(name):
                raise self.wrong(name, because)

    def refuse_unread(self) -> None:
        """Refuse keys that nobody has read, unless they change nothing or are switched off."""
        for key, value in self.gguf.metadata.items():
            name = key.removeprefix(self._prefix)
            known = name == key or name in self._read or name in _INERT
            holds = value == _HOLDS[name] if name in _HOLDS else not np.any(np.asarray(value, dtype=object))
            if not known and not holds:
                raise self.wrong(
                    name, f"= {value!r} is not known to this version and may change what the model computes"
                )

    def wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.gguf.path}: {self._prefix}{name}: {what}.")


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


# --- families ---


def _llama_fields(m: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return _rope_fields(m, config) | {
        "attention_bias": "blk.0.attn_q.bias" in m.gguf.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in m.gguf.tensors,
        "sliding_window": m.get("attention.sliding_window") or None,
    }


def _qwen_fields(m: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    if m.count("attention.sliding_window", config["max_position_embeddings"]) < config["max_position_embeddings"]:
        raise m.wrong("attention.sliding_window", "which layers slide is not said, and sliding is not supported")
    return _rope_fields(m, config)


def _phi3_fields(m: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return _rope_fields(m, config) | {"sliding_window": m.get("attention.sliding_window") or None}


def _gemma3_fields(m: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    m.refuse("attn_logit_softcapping", "final_logit_softcapping", because="logits are not capped")
    num_layers = config["num_hidden_layers"]
    slides = m.layers("attention.sliding_window_pattern")
    if not isinstance(slides, np.ndarray):
        pattern = m.count("attention.sliding_window_pattern", _GEMMA3_PATTERN)
        slides = [bool((i + 1) % pattern) for i in range(num_layers)]
    scale_of = config["head_dim"]
    if num_layers == 62:  # of the published sizes, only 27B scales queries otherwise, and the format does not say
        scale_of = config["hidden_size"] // config["num_attention_heads"]
    return _rope_fields(m, config, default_base=m.number("rope.global.freq_base", 1e6)) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale_of,
        "sliding_window": m.count("attention.sliding_window"),
        "rope_local_base_freq": m.number("rope.freq_base_swa", m.number("rope.local.freq_base", 1e4)),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
    }


_FAMILY_FIELDS = {
    "gemma3": _gemma3_fields,
    "llama": _llama_fields,
    "phi3": _phi3_fields,
    "qwen2": _qwen_fields,
    "qwen3": _qwen_fields,
}


# --- rope ---


def _rope_fields(m: _Metadata, config: Mapping[str, Any], *, default_base: float = 1e4) -> dict[str, Any]:
    for tensor in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if tensor in m.gguf.tensors:
            raise ModelError(f"{m.gguf.path}: {tensor}: the longrope scaling is not supported.")
    theta = m.number("rope.freq_base", default_base)
    stated, divisors = _stated_scaling(m, config), _divisors(m, theta)
    if stated and divisors:
        raise m.wrong("rope.scaling.factor", "is not supported beside rope_freqs.weight, which scales too")
    return {
        "rope_theta": theta,
        "partial_rotary_factor": m.number("rope.dimension_count", config["head_dim"]) / config["head_dim"],
        "rope_scaling": stated or divisors,
    }


def _stated_scaling(m: _Metadata, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the keys say: a factor without a kind is linear, and one is no scaling, as llama.cpp has it."""
    kind = m.get("rope.scaling.type", "linear")
    factor = m.number("rope.scaling.factor", m.number("rope.scale_linear", 1.0))
    attention = m.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": m.count(
                "rope.scaling.original_context_length", config["max_position_embeddings"]
            ),
            "attention_factor": attention * yarn_attention_factor(factor),
            "beta_fast": m.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": m.number("rope.scaling.yarn_beta_slow", 1.0),
        }
    if attention != 1.0:
        raise m.wrong("rope.scaling.attn_factor", f"= {attention} is supported with the type yarn only")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    return {"rope_type": kind, "factor": factor}


def _divisors(m: _Metadata, theta: float) -> dict[str, Any] | None:
    """The fields behind the divisors that a file holds for Llama 3.1 and later; any other divisors are refused."""
    if "rope_freqs.weight" not in m.gguf.tensors:
        return None
    divisors = m.gguf.tensors["rope_freqs.weight"].dequantize()
    if np.all(divisors == 1):
        return None
    scaling = Llama3Scaling(float(divisors.max()), 1.0, 4.0, 8192)
    num = len(divisors)
    if not np.allclose(divisors, [llama3_divisor(theta ** (-i / num), scaling) for i in range(num)], rtol=1e-3):
        raise ModelError(f"{m.gguf.path}: rope_freqs.weight is not Llama 3's scaling, and no other is supported.")
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }
