"""The families that Sapwood itself has, each a file. To add one, write its file and name it here; another package names
its own in its entry points (`sapwood.catalogue`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sapwood.arch.families import (
    bamba,
    bert,
    cohere,
    deepseek,
    exaone,
    falcon,
    falcon_h1,
    gemma,
    gemma3,
    gemma3_sight,
    gemma3n,
    gemma4,
    glm,
    gpt,
    gpt_oss,
    granite,
    granite_hybrid,
    gte,
    internlm,
    kin,
    lfm2,
    llama,
    llama4,
    llava_next,
    mamba1,
    mamba2,
    minicpm3,
    mistral3,
    mixtral,
    modernbert,
    mpnet,
    nemotron,
    nemotron_h,
    nomic,
    olmo,
    phi3,
    qwen,
    qwen3_next,
    qwen3_vl,
    qwen_moe,
    sight,
    sigmoid_moe,
    smollm3,
    softmax_moe,
    sound,
    stablelm,
    t5,
    translators,
    within,
)
from sapwood.arch.families.readers import reader
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.base.errors import ModelError

FAMILIES: tuple[Family, ...] = (
    *bamba.FAMILIES,
    *bert.FAMILIES,
    *cohere.FAMILIES,
    *deepseek.FAMILIES,
    *exaone.FAMILIES,
    *falcon.FAMILIES,
    *falcon_h1.FAMILIES,
    *gemma.FAMILIES,
    *gemma3.FAMILIES,
    *gemma3_sight.FAMILIES,
    *gemma3n.FAMILIES,
    *gemma4.FAMILIES,
    *glm.FAMILIES,
    *gpt.FAMILIES,
    *gpt_oss.FAMILIES,
    *granite.FAMILIES,
    *granite_hybrid.FAMILIES,
    *gte.FAMILIES,
    *internlm.FAMILIES,
    *kin.FAMILIES,
    *lfm2.FAMILIES,
    *llama.FAMILIES,
    *llama4.FAMILIES,
    *llava_next.FAMILIES,
    *mamba1.FAMILIES,
    *mamba2.FAMILIES,
    *minicpm3.FAMILIES,
    *mistral3.FAMILIES,
    *mixtral.FAMILIES,
    *modernbert.FAMILIES,
    *mpnet.FAMILIES,
    *nemotron.FAMILIES,
    *nemotron_h.FAMILIES,
    *nomic.FAMILIES,
    *olmo.FAMILIES,
    *phi3.FAMILIES,
    *qwen.FAMILIES,
    *qwen3_next.FAMILIES,
    *qwen3_vl.FAMILIES,
    *qwen_moe.FAMILIES,
    *sight.FAMILIES,
    *sigmoid_moe.FAMILIES,
    *smollm3.FAMILIES,
    *softmax_moe.FAMILIES,
    *sound.FAMILIES,
    *stablelm.FAMILIES,
    *t5.FAMILIES,
    *translators.FAMILIES,
    *within.FAMILIES,
)


def declare(
    config: Mapping[str, Any], families: Sequence[Family] = FAMILIES, *, methods: Collection[str] = ()
) -> Decoder:
    """The model that a config.json describes. `methods` are ways to quantise weights that can be read.

    Raises ModelError, naming the field, for an architecture that no family has and for settings that are not supported.
    """
    c = HfConfig(config)
    names = c.strings("architectures")
    family = next((one for one in families if [one.architecture] == list(names)), None)
    read = family.declare if family else reader(names[0], families) if len(names) == 1 else None
    if read is None:
        known = ", ".join(sorted(one.architecture for one in families))
        raise ModelError(f"config.json: architectures = {list(names)} is not supported; these are: {known}.")
    quantization = config.get("quantization_config") or None
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") not in methods:
        known = ", ".join(["plain weights", *sorted(methods)])
        c.refuse(
            "quantization_config",
            because=f"only {known} can be loaded; fetch the plain weights, or have them quantised anew",
        )
    c.ignore("quantization_config")
    decoder = read(c)
    c.refuse_unread()
    return replace(decoder, quantization=quantization)
