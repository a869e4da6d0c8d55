"""EAGLE's heads (Li et al., 2024 and 2025): a block that goes on from hidden states of the model that it drafts for.

Two forms, told apart by what a checkpoint holds, in the layout of those who made them and of those who took it over:

    the first      join([embedding of a token; hidden state before it]) → block without a first norm → the other model's head;
                   hidden states are those after the last norm (EAGLE and EAGLE-2, which differ in how drafts are searched)
    the third      hidden states before three of the layers, joined by `feature`; the block attends by [token_norm(embedding);
                   feature_norm(feature)] and adds to the feature; a norm and a head of its own, of fewer words
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sapwood.arch.draft_head import DraftHead, Words
from sapwood.arch.families.common import gqa, mlp
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Embedding, Linear, Norm, Part
from sapwood.base.errors import ModelError

_NUM_TAPS = 3
_ROOT = "model."


def is_eagle(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a config.json and the names of its tensors, none where they are made up, are those of such a head."""
    architectures = config.get("architectures") or [""]
    return "eagle" in str(architectures[0]).lower() or "draft_vocab_size" in config or _found(names, "fc.weight")


def eagle(config: Mapping[str, Any], names: Collection[str], target: Decoder) -> DraftHead:
    """The head that a config.json describes, for `target`. Raises ModelError, naming the field, if the two do not fit."""
    c = HfConfig(config)
    third = "draft_vocab_size" in config or _found(names, "midlayer.mlp.down_proj.weight") or "agle3" in _name(config)
    hidden, vocab = c.integer("hidden_size"), c.integer("vocab_size")
    _check(c, target)
    layer = "midlayer." if third and not _found(names, "layers.0.mlp.down_proj.weight") else "layers.0."
    attention = gqa(c, qkv_bias=_found(names, f"{layer}self_attn.q_proj.bias") or c.boolean("attention_bias", False))
    if third:
        attention = replace(attention, qkv=replace(attention.qkv, inp=2 * hidden))
    eps, taps = c.number("rms_norm_eps"), _taps(c, target) if third else ()
    words = c.integer("draft_vocab_size", vocab)
    join = Linear((len(taps) or 2) * hidden, (Part(f"{_ROOT}fc", hidden),), None, bias=_found(names, "fc.bias"))
    made = DraftHead(
        architecture=_name(config),
        max_positions=target.max_positions,
        dtype=target.dtype,
        vocab_size=vocab,
        hidden_size=hidden,
        embed=Embedding(f"{_ROOT}embed_tokens", vocab, hidden) if _found(names, "embed_tokens.weight") else None,
        taps=taps,
        join=None if third else join,
        feature=join if third else None,
        token_norm=Norm(f"{_ROOT}{layer}input_layernorm", hidden, eps) if third else None,
        feature_norm=Norm(f"{_ROOT}{layer}hidden_norm", hidden, eps) if third else None,
        blocks=(
            Block(
                mixer_norm=_norm(names, "input_layernorm", layer, hidden, eps) if not third else None,
                mixer=attention,
                ffn_norm=Norm("post_attention_layernorm", hidden, eps),
                ffn=mlp(c),
            ),
        ),
        block_prefix=f"{_ROOT}{layer}",
        norm=Norm(f"{_ROOT}norm", hidden, eps) if third or _found(names, "norm.weight") else None,
        head=Linear(hidden, (Part("lm_head", words),), "out") if third or "lm_head.weight" in names else None,
        words=Words("d2t", words, vocab) if third and (words < vocab or "d2t" in names) else None,
        root=_ROOT,
    )
    c.refuse("norm_before_residual", because="its block adds to other hidden states")
    c.ignore(
        "bias",
        "eagle_fc_bias",
        "tie_word_embeddings",
        "max_position_embeddings",
        "target_model_type",
        "modules_to_not_convert",
    )
    c.refuse_unread()
    return made


def _check(c: HfConfig, target: Decoder) -> None:
    """What a head and its model have in common."""
    wanted = {
        "hidden_size": (c.integer("hidden_size"), target.hidden_size),
        "target_hidden_size": (c.integer("target_hidden_size", target.hidden_size), target.hidden_size),
        "vocab_size": (c.integer("vocab_size"), target.vocab_size),
        "num_hidden_layers": (c.integer("num_hidden_layers", 1), 1),
    }
    for name, (found, right) in wanted.items():
        if found != right:
            raise ModelError(
                f"config.json: {name} = {found} of a head; for {target.architecture} as given it must be {right}."
            )


def _taps(c: HfConfig, target: Decoder) -> tuple[int, ...]:
    """The layers before which hidden states are taken: a low, a middle and a high one."""
    layers = len(target.blocks)
    taps: tuple[int, ...] = (min(2, layers - 1), layers // 2, max(0, layers - 3))
    if c.has("eagle_config"):
        section = c.section("eagle_config")
        if section.has("eagle_aux_hidden_state_layer_ids"):
            taps = section.integers("eagle_aux_hidden_state_layer_ids")
        section.ignore("use_aux_hidden_state")
        section.refuse_unread()
    if len(taps) != _NUM_TAPS or not all(0 <= tap < layers for tap in taps):
        raise ModelError(
            f"config.json: eagle_aux_hidden_state_layer_ids must be {_NUM_TAPS} of {layers} layers, got {list(taps)}."
        )
    return taps


def _name(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or ["Eagle"])[0])


def _norm(names: Collection[str], name: str, layer: str, size: int, eps: float) -> Norm | None:
    return Norm(name, size, eps) if _found(names, f"{layer}{name}.weight") else None


def _found(names: Collection[str], name: str) -> bool:
    return name in names or f"{_ROOT}{name}" in names
