"""What people are told of a model: its family, how large it is, how it is stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sapwood.arch.memory import num_parameters
from sapwood.arch.parts import Decoder
from sapwood.hub.files import ModelFiles, tensors_in

_SHORT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BLOCKS = re.compile(r"(?<![A-Za-z0-9])((?:IQ|Q|TQ)\d\w*|BF16|F16|F32)(?![A-Za-z0-9])", re.IGNORECASE)
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
"""Fields of config.json by the names that GGUF has for them."""


@dataclass(frozen=True, kw_only=True)
class About:
    """A model in words and numbers.

    Attributes:
        architecture: As its config names it.
        stored: What most of its weights are stored in, such as BF16 or Q4_K_M.
        num_bytes: Of its weights' files.
        modified: When the newest of them was written, in seconds since the epoch.
        digest: The same for the same files.
        sizes: Its dimensions, by GGUF's names.
    """

    architecture: str = "unknown"
    container: Literal["safetensors", "gguf"] = "safetensors"
    num_parameters: int = 0
    stored: str = "unknown"
    num_bytes: int = 0
    modified: float = 0.0
    digest: str = ""
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def about(files: ModelFiles, decoder: Decoder | None) -> About:
    """`decoder` is the model that `files` declare; None where only its weights say what it is."""
    config = files.config
    weights = [files.path] if files.kind == "gguf" else sorted(files.path.glob("*.safetensors"))
    stats = [path.stat() for path in weights]
    names = [(path.name, stat.st_size) for path, stat in zip(weights, stats, strict=True)]
    told = json.dumps([config, names], sort_keys=True, default=str)
    dtype = config.get("dtype") or config.get("torch_dtype") if decoder is None else decoder.dtype
    found = _BLOCKS.search(files.path.stem) if files.kind == "gguf" else None
    return About(
        architecture=str(config.get("model_type") or "unknown"),
        container="gguf" if files.kind == "gguf" else "safetensors",
        num_parameters=_stored_parameters(weights) if decoder is None else num_parameters(decoder),
        stored=found[1].upper() if found else _SHORT.get(str(dtype or "float32"), "unknown"),
        num_bytes=sum(stat.st_size for stat in stats),
        modified=max((stat.st_mtime for stat in stats), default=0.0),
        digest=hashlib.sha256(told.encode()).hexdigest(),
        sizes={name: config[field] for field, name in _SIZES.items() if isinstance(config.get(field), int)},
    )


def _stored_parameters(paths: Sequence[Path]) -> int:
    """Elements of all tensors in safetensors files."""
    return sum(prod(tensor.shape) for path in paths for tensor in tensors_in(path).values())
