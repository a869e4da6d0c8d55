"""Sapwood: an LLM inference engine. Point it at a model and it serves it.

from sapwood import LLM, SamplingParams
print(LLM("smollm2-135m").generate("The capital of France is", SamplingParams(max_tokens=8))[0].text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "LLM": "sapwood.llm",
    "AsyncLLM": "sapwood.llm",
    "Chunk": "sapwood.outputs",
    "Generation": "sapwood.outputs",
    "Output": "sapwood.outputs",
    "SamplingParams": "sapwood.base.sampling",
    "Grammar": "sapwood.base.grammar",
    "Config": "sapwood.config",
    "SapwoodError": "sapwood.base.errors",
    "UserError": "sapwood.base.errors",
    "RequestError": "sapwood.base.errors",
    "ConfigError": "sapwood.base.errors",
    "ModelError": "sapwood.base.errors",
    "GenerationFailed": "sapwood.base.errors",
    "EngineDead": "sapwood.base.errors",
    "Overloaded": "sapwood.base.errors",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "Chunk",
    "Config",
    "ConfigError",
    "EngineDead",
    "Generation",
    "GenerationFailed",
    "Grammar",
    "ModelError",
    "Output",
    "Overloaded",
    "RequestError",
    "SamplingParams",
    "SapwoodError",
    "UserError",
    "__version__",
]

if TYPE_CHECKING:
    from sapwood.base.errors import (
        ConfigError,
        EngineDead,
        GenerationFailed,
        ModelError,
        Overloaded,
        RequestError,
        SapwoodError,
        UserError,
    )
    from sapwood.base.grammar import Grammar
    from sapwood.base.sampling import SamplingParams
    from sapwood.config import Config
    from sapwood.llm import LLM, AsyncLLM
    from sapwood.outputs import Chunk, Generation, Output


def __getattr__(name: str) -> Any:
    """Names are imported when first used, so that `sapwood --help` does not wait for what it does not need."""
    if name not in _HOME:
        raise AttributeError(f"module 'sapwood' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
