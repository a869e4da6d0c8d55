"""GTE 1.5: an encoder with rotary positions, a gate, and norms of sums."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.bert import classifier
from sapwood.arch.families.common import ACTIVATIONS, Layout, decoder, gqa
from sapwood.arch.families.readers import scores
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Linear, Mlp, Part
from sapwood.arch.positions import Segments
from sapwood.arch.rope import read_rope
from sapwood.arch.texts import Dense

GTE = Layout(
    embed="gte.embeddings.word_embeddings",
    block="gte.encoder.layer.{}.",
    mixer_norm="attn_ln",
    ffn_norm="mlp_ln",
    qkv=("attention.qkv_proj",),
    out="attention.o_proj",
    up=("mlp.up_gate_proj",),
    down="mlp.down_proj",
    eps="layer_norm_eps",
    center=True,
    bias=True,
)


def gte(c: HfConfig) -> Decoder:
    c.ignore("tie_word_embeddings", "classifier_dropout")
    hidden = c.integer("hidden_size")
    rope = read_rope(c, head_dim=hidden // c.integer("num_attention_heads"), theta=160_000.0)
    layer = Block(
        mixer_norm=None,
        mixer=replace(gqa(c, GTE, rope=rope, qkv_bias=True, out_bias=True), causal=False),
        ffn_norm=None,
        ffn=_mlp(c),
        after_mixer=GTE.normed(c, GTE.mixer_norm),
        after_ffn=GTE.normed(c, GTE.ffn_norm),
        summed=True,
    )
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), GTE)
    kinds = c.count("type_vocab_size", 1)
    found = replace(
        found,
        norm=None,
        head=None,
        segments=Segments("gte.embeddings.token_type_embeddings", kinds, hidden) if kinds else None,
        embed_norm=GTE.normed(c, "gte.embeddings.LayerNorm"),
        root="gte.",
        aside=("lm_head.",),
    )
    pooler = Dense(Linear(hidden, (Part("gte.pooler.dense", hidden),), None, bias=True), "tanh")
    if not scores(c):
        return replace(found, aside=(*found.aside, "gte.pooler.", "pooler."))
    return replace(found, classifier=classifier(c, pooler, "classifier"))


def _mlp(c: HfConfig) -> Mlp:
    """Of the two that lie in one tensor the gate is the second."""
    hidden, inner, (name,) = c.integer("hidden_size"), c.integer("intermediate_size"), GTE.up
    return Mlp(
        gate_up=Linear(hidden, (Part(name, inner, at=inner), Part(name, inner, at=0)), "out"),
        down=Linear(inner, (Part(GTE.down, hidden),), "in", bias=True),
        activation=c.choice("hidden_act", ACTIVATIONS, "gelu"),
    )


FAMILIES = tuple(
    Family(architecture=name, declare=gte) for name in ("GteModel", "GteForMaskedLM", "GteForSequenceClassification")
)
