"""What families read of a GGUF file's header. What is not understood is refused by name, as in a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.arch.rope import llama3_divisor, yarn_attention_factor
from sapwood.arch.scaling import Llama3Scaling
from sapwood.base.errors import ModelError

OUTER: Mapping[str, str] = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
INNER: Mapping[str, str] = MappingProxyType({
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
})  # fmt: skip
"""Modules of the model and of its blocks, by the stems of their tensors' names in most families."""

# Keys of an architecture that say nothing about the mathematics of generation, or only what holds here anyway.
_INERT = frozenset({
    "attention.layer_norm_epsilon", "pooling_type", "rope.scaling.finetuned", "rope.scaling.original_context_length",
    "vocab_size",
})  # fmt: skip
_HOLDS = {"attention.causal": True, "tensor_data_layout": "Meta AI original pth"}


class Tensor(Protocol):
    """A tensor in the file; `shape` is in numpy's order."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def dequantize(self) -> NDArray[np.float32]: ...


class Header(Protocol):
    """A file's metadata and tensors, as `sapwood.hub.gguf` reads them."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


class GgufKeys:
    """The keys of a file's architecture; remembers which were read, so that the others can be refused by name."""

    def __init__(self, gguf: Header, architecture: str) -> None:
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


# --- rope ---


def rope_fields(m: GgufKeys, config: Mapping[str, Any], *, default_base: float = 1e4) -> dict[str, Any]:
    """How positions are rotated, in the fields of a config.json; `config` has those that every model has."""
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


def _stated_scaling(m: GgufKeys, config: Mapping[str, Any]) -> dict[str, Any] | None:
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


def _divisors(m: GgufKeys, theta: float) -> dict[str, Any] | None:
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
