"""Models that see: Qwen3-VL (dense and with experts), with a tower whose inner states join the first layers (DeepStack), and Qwen3.5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.families.qwen import qwen3
from sapwood.arch.families.qwen3_next import qwen3_5, qwen3_5_moe
from sapwood.arch.families.qwen_moe import qwen3_vl_moe
from sapwood.arch.families.sight import ACTIVATIONS, axial, seeing
from sapwood.arch.families.within import MOVED, text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.arch.sight import begun
from sapwood.arch.sight_qwen3 import Qwen3Tower
from sapwood.base.errors import ModelError


def woven(declare: Callable[[HfConfig], Decoder], *sections: int) -> Callable[[HfConfig], Decoder]:
    """A text whose pairs take turns at three positions, as many each as `sections` say where the config does not."""

    def whole(c: HfConfig) -> Decoder:
        fields: dict[str, Any] = {name: c.field(name) for name in c.names()}
        name = "rope_scaling" if isinstance(fields.get("rope_scaling"), Mapping) else "rope_parameters"
        said = fields.get(name) or {"rope_type": "default"}
        fields[name] = {"mrope_section": sections, **said, "mrope_interleaved": True}
        text = HfConfig(fields, within="text_config.")
        made = declare(text)
        text.refuse_unread()
        return made

    return whole


def _tower(c: HfConfig, v: HfConfig, hidden: int) -> Qwen3Tower:
    layers, out = v.integer("depth", 27), v.integer("out_hidden_size", 3584)
    v.must("in_channels", 3)
    if out != hidden:
        raise ModelError(f"config.json: the tower's vectors have {out} numbers, those of tokens {hidden}.")
    return Qwen3Tower(
        out=out,
        roots=begun(("tower", "model.visual.")),
        others=(begun(("tower", "visual.")),),
        hidden=v.integer("hidden_size", 1152),
        inner=v.integer("intermediate_size", 4304),
        layers=layers,
        heads=v.integer("num_heads", 16),
        patch=v.integer("patch_size", 16),
        merge=v.integer("spatial_merge_size", 2),
        frames=v.integer("temporal_patch_size", 2),
        activation=v.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        theta=axial(v),
        side=_side(v),
    )


def _deep(c: HfConfig, v: HfConfig, hidden: int) -> Qwen3Tower:
    made = _tower(c, v, hidden)
    deep = v.integers("deepstack_visual_indexes") if v.has("deepstack_visual_indexes") else (8, 16, 24)
    if len(set(deep)) != len(deep) or not all(0 <= index < made.layers for index in deep):
        raise ModelError(
            f"config.json: vision_config.deepstack_visual_indexes = {list(deep)}: the tower has layers 0 to {made.layers - 1}."
        )
    return replace(made, deep=deep)


def _side(v: HfConfig) -> int:
    """Of the table of places, which transformers takes for the largest square in it."""
    return int(v.integer("num_position_embeddings", 2304) ** 0.5)


_THIRDS, _QUARTER = (24, 20, 20), (11, 11, 10)

FAMILIES = (
    Family(
        architecture="Qwen3VLForConditionalGeneration",
        declare=seeing(text_of(woven(qwen3, *_THIRDS), MOVED, ()), _deep),
    ),
    Family(
        architecture="Qwen3VLMoeForConditionalGeneration",
        declare=seeing(text_of(woven(qwen3_vl_moe, *_THIRDS), MOVED, ()), _deep),
    ),
    Family(
        architecture="Qwen3_5ForConditionalGeneration",
        declare=seeing(text_of(woven(qwen3_5, *_QUARTER), MOVED, ()), _tower),
    ),
    Family(
        architecture="Qwen3_5MoeForConditionalGeneration",
        declare=seeing(text_of(woven(qwen3_5_moe, *_QUARTER), MOVED, ()), _tower),
    ),
)
