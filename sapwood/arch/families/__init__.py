"""The families: each file maps a config to a Decoder. To add one, write its file and name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sapwood.arch.families import gemma3, llama, phi3, qwen
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.base.errors import ModelError

FAMILIES: Mapping[str, Callable[[HfConfig], Decoder]] = MappingProxyType(
    {
        "Gemma3ForCausalLM": gemma3.gemma3,
        "LlamaForCausalLM": llama.llama,
        "MistralForCausalLM": llama.mistral,
        "Phi3ForCausalLM": phi3.phi3,
        "Qwen2ForCausalLM": qwen.qwen2,
        "Qwen3ForCausalLM": qwen.qwen3,
    }
)


def declare(config: Mapping[str, Any]) -> Decoder:
    """The model that a config.json describes.

    Raises ModelError, naming the field, for an architecture that is not known and for settings that are not supported.
    """
    c = HfConfig(config)
    names = c.strings("architectures")
    family = FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        raise ModelError(
            f"config.json: architectures = {list(names)} is not supported; these are: {', '.join(sorted(FAMILIES))}."
        )
    c.refuse("quantization_config", because="only plain weights can be loaded")
    decoder = family(c)
    c.refuse_unread()
    return decoder
