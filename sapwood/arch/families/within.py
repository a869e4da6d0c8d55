"""The text of models that see or hear: Gemma 3n and 4, Llama 4, and Kimi K2.5 and K2.6."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.deepseek import deepseek_v3
from sapwood.arch.families.gemma3n import gemma3n
from sapwood.arch.families.gemma4 import gemma4
from sapwood.arch.families.llama4 import llama4
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder

_SENSES = re.compile("vision|visual|image|video|audio|multimodal|projector|^mm_|spatial")
"""In the names of fields that say nothing of texts."""
_OUTER = ("architectures", "tie_word_embeddings", "dtype", "torch_dtype")
"""Fields of the whole model that hold for its text."""
MOVED = {"model.": "model.language_model."}
_APART = {"model.": "language_model.model.", "lm_head": "language_model.lm_head"}


def text_of(
    declare: Callable[[HfConfig], Decoder], names: Mapping[str, str], aside: tuple[str, ...], **assumed: Any
) -> Callable[[HfConfig], Decoder]:
    """A family whose text is another's: its config is a section, or stands beside the other fields, and `names` is what names of
    tensors begin with there, by what they begin with otherwise. What begins with one of `aside` is not loaded. Fields that a
    section leaves out are as `assumed`."""

    def whole(c: HfConfig) -> Decoder:
        c.ignore(*(name for name in c.names() if _SENSES.search(name)))
        text = _section(c) if c.has("text_config") else c
        text.assume(**assumed)
        made = moved(declare(text), names)
        text.refuse_unread()
        return replace(made, aside=(*made.aside, *aside))

    return whole


def _section(c: HfConfig) -> HfConfig:
    return c.section("text_config", **{name: c.field(name) for name in _OUTER if c.has(name)})


def moved(made: Decoder, names: Mapping[str, str]) -> Decoder:
    """With names of tensors that begin otherwise."""

    def begun(name: str) -> str:
        old = next((old for old in names if name.startswith(old)), "")
        return names[old] + name.removeprefix(old) if old else name

    def renamed(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(map(renamed, part))
        if not dataclasses.is_dataclass(part) or isinstance(part, type):
            return part
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
        return replace(
            part,
            **{name: begun(value) if name == "name" else renamed(value) for name, value in values.items()},
        )

    outside = {name: renamed(getattr(made, name)) for name in (*made.before, *made.behind)}
    return replace(
        made, **outside, block_prefix=begun(made.block_prefix), aside=tuple(begun(name) for name in made.aside)
    )


GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_SOUND = ("model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio.")

FAMILIES = (
    Family(architecture="Gemma3nForConditionalGeneration", declare=text_of(gemma3n, MOVED, _SOUND)),
    Family(architecture="Gemma4ForConditionalGeneration", declare=text_of(gemma4, MOVED, _SOUND)),
    Family(
        architecture="Llama4ForConditionalGeneration",
        declare=text_of(llama4, _APART, ("vision_model.", "multi_modal_projector.")),
    ),
    Family(
        architecture="KimiK25ForConditionalGeneration",
        declare=text_of(deepseek_v3, _APART, ("vision_tower.", "mm_projector.")),
    ),
)
