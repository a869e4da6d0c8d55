"""ModernBERT: an encoder with rotary positions and norms before, most layers of which see a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sapwood.arch.families.common import FULL, SLIDING, Layout, block, decoder, gqa, layer_types, mlp
from sapwood.arch.families.readers import num_labels, scores
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder, Linear, Part, Rope
from sapwood.arch.rope import rope_of_kind
from sapwood.arch.texts import Classifier, Dense
from sapwood.base.task import Pooling

MODERN = Layout(
    embed="model.embeddings.tok_embeddings",
    block="model.layers.{}.",
    norm="model.final_norm",
    mixer_norm="attn_norm",
    ffn_norm="mlp_norm",
    qkv=("attn.Wqkv",),
    out="attn.Wo",
    up=("mlp.Wi",),
    down="mlp.Wo",
    eps="norm_eps",
    center=True,
)
_THETA = {FULL: 160000.0, SLIDING: 10000.0}
_POOLINGS: Mapping[str, Pooling] = MappingProxyType({"cls": "cls", "mean": "mean"})


def modernbert(c: HfConfig) -> Decoder:
    c.spelt(hidden_act="hidden_activation")
    c.must("position_embedding_type", "absolute")  # so that it says, and means none that are learned
    c.ignore(
        "classifier_dropout", "decoder_bias", "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"
    )
    c.ignore(
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "initializer_cutoff_factor",
        "tie_word_embeddings",
        "layer_norm_eps",
    )
    c.must("classifier_activation", "gelu")
    c.ignore("classifier_bias", "classifier_pooling")
    every = c.integer("global_attn_every_n_layers", 3)
    kinds = layer_types(c, [SLIDING if i % every else FULL for i in range(c.integer("num_hidden_layers"))])
    layout = replace(MODERN, bias=c.boolean("norm_bias", False))
    layers = [_block(c, layout, kind) for kind in kinds]
    layers[0] = replace(layers[0], mixer_norm=None)  # the tokens' vectors have been normed
    found = decoder(c, layers, layout)
    return replace(
        found,
        head=None,
        embed_norm=layout.normed(c, "model.embeddings.norm"),
        classifier=_classifier(c, layout) if scores(c) else None,
        root="model.",
        aside=("decoder.",) if scores(c) else ("decoder.", "head."),
    )


def _block(c: HfConfig, layout: Layout, kind: str) -> Block:
    # Half of the tokens that are seen are before, and half of them behind.
    window = c.integer("local_attention", 128) // 2 if kind == SLIDING else None
    bias = c.boolean("attention_bias", False)
    attention = gqa(c, layout, window=window, rope=_rope(c, kind), qkv_bias=bias, out_bias=bias)
    return block(c, replace(attention, causal=False), mlp(c, layout, bias=c.boolean("mlp_bias", False)), layout)


def _rope(c: HfConfig, kind: str) -> Rope:
    head_dim = c.integer("hidden_size") // c.integer("num_attention_heads")
    theta = c.number("local_rope_theta" if kind == SLIDING else "global_rope_theta", _THETA[kind])
    return rope_of_kind(c, kind, head_dim=head_dim, theta=theta) or Rope(head_dim, theta)


def _classifier(c: HfConfig, layout: Layout) -> Classifier:
    hidden = c.integer("hidden_size")
    dense = Linear(hidden, (Part("head.dense", hidden),), None, bias=c.boolean("classifier_bias", False))
    inner = Dense(dense, "gelu", layout.normed(c, "head.norm"))
    labels = Linear(hidden, (Part("classifier", num_labels(c)),), None, bias=True)
    return Classifier(c.choice("classifier_pooling", _POOLINGS, "cls"), inner, labels)


FAMILIES = tuple(
    Family(architecture=f"ModernBert{ending}", declare=modernbert)
    for ending in ("Model", "ForMaskedLM", "ForSequenceClassification")
)
