"""BERT, RoBERTa with XLM-R and CamemBERT, and DistilBERT: encoders with learned positions and norms of sums."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import Layout, decoder, gqa, plain_mlp
from sapwood.arch.families.readers import num_labels, scores
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Block, Decoder, Linear, Part
from sapwood.arch.positions import Positions, Segments
from sapwood.arch.texts import Classifier, Dense

BERT = Layout(
    embed="bert.embeddings.word_embeddings",
    block="bert.encoder.layer.{}.",
    mixer_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    eps="layer_norm_eps",
    center=True,
    bias=True,
)
ROBERTA = replace(BERT, embed="roberta.embeddings.word_embeddings", block="roberta.encoder.layer.{}.")
DISTIL = replace(
    BERT,
    embed="distilbert.embeddings.word_embeddings",
    block="distilbert.transformer.layer.{}.",
    mixer_norm="sa_layer_norm",
    ffn_norm="output_layer_norm",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    eps=1e-12,
)


def bert(c: HfConfig) -> Decoder:
    hidden = c.integer("hidden_size")
    found = encoder(c, BERT, kinds=2)
    pooler = Dense(Linear(hidden, (Part("bert.pooler.dense", hidden),), None, bias=True), "tanh")
    if not scores(c):
        return replace(found, aside=(*found.aside, "bert.pooler.", "pooler."))
    return replace(found, classifier=classifier(c, pooler, "classifier"))


def roberta(c: HfConfig) -> Decoder:
    hidden = c.integer("hidden_size")
    found = encoder(c, ROBERTA, kinds=1, offset=c.count("pad_token_id", 1) + 1)
    found = replace(found, aside=(*found.aside, "roberta.pooler.", "pooler."))
    if not scores(c):
        return found
    inner = Dense(Linear(hidden, (Part("classifier.dense", hidden),), None, bias=True), "tanh")
    return replace(found, classifier=classifier(c, inner, "classifier.out_proj"))


def distilbert(c: HfConfig) -> Decoder:
    c.spelt(
        hidden_size="dim",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        intermediate_size="hidden_dim",
        hidden_act="activation",
    )
    c.ignore("sinusoidal_pos_embds", "tie_weights_")  # they are in the checkpoint, however they were made
    hidden = c.integer("hidden_size")
    found = encoder(c, DISTIL, kinds=0)
    if not scores(c):
        return found
    inner = Dense(Linear(hidden, (Part("pre_classifier", hidden),), None, bias=True), "relu")
    return replace(found, classifier=classifier(c, inner, "classifier"))


def encoder(c: HfConfig, layout: Layout, *, kinds: int, offset: int = 0) -> Decoder:
    """`kinds` are those of texts that tokens may belong to, where the config says nothing; `offset` the row of the first position."""
    c.must("position_embedding_type", "absolute")
    c.refuse("add_cross_attention", "cross_attention_hidden_size", because="texts are read alone")
    c.ignore("classifier_dropout", "seq_classif_dropout", "qa_dropout", "gradient_checkpointing", "tie_word_embeddings")
    hidden, root = c.integer("hidden_size"), layout.embed.partition(".")[0]
    attention = replace(gqa(c, layout, rope=STILL, qkv_bias=True, out_bias=True), causal=False)
    layer = Block(
        mixer_norm=None,
        mixer=attention,
        ffn_norm=None,
        ffn=plain_mlp(c, layout, bias=True),
        after_mixer=layout.normed(c, layout.mixer_norm),
        after_ffn=layout.normed(c, layout.ffn_norm),
        summed=True,
    )
    count = c.integer("max_position_embeddings") - offset
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), layout, max_positions=count)
    within = f"{root}.embeddings"
    kinds = c.integer("type_vocab_size", kinds) if kinds else 0
    return replace(
        found,
        max_positions=count,
        norm=None,
        head=None,
        positions=Positions(f"{within}.position_embeddings", count, hidden, offset),
        segments=Segments(f"{within}.token_type_embeddings", kinds, hidden) if kinds else None,
        embed_norm=layout.normed(c, f"{within}.LayerNorm"),
        root=f"{root}.",
        aside=(f"{within}.position_ids", "embeddings.position_ids", "cls.", "lm_head.", "vocab_", "qa_outputs."),
    )


def classifier(c: HfConfig, inner: Dense, name: str) -> Classifier:
    return Classifier("cls", inner, Linear(inner.linear.out, (Part(name, num_labels(c)),), None, bias=True))


_OF = {"Bert": bert, "Roberta": roberta, "XLMRoberta": roberta, "Camembert": roberta, "DistilBert": distilbert}
FAMILIES = tuple(
    Family(architecture=f"{stem}{ending}", declare=declare)
    for stem, declare in _OF.items()
    for ending in ("Model", "ForMaskedLM", "ForSequenceClassification")
)
