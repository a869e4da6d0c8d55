"""MPNet: RoBERTa's encoder with biases of distances in its scores, as T5's."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.bert import BERT, classifier, encoder
from sapwood.arch.families.readers import scores
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Block, Decoder, Linear, Part
from sapwood.arch.reader import Relative
from sapwood.arch.texts import Dense

MPNET = replace(
    BERT,
    embed="mpnet.embeddings.word_embeddings",
    block="mpnet.encoder.layer.{}.",
    mixer_norm="attention.LayerNorm",
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
)
_BUCKETS, _FARTHEST = 32, 128  # whatever a config says, the family's code has no others
_OFFSET = 2  # the row of the first position, likewise


def mpnet(c: HfConfig) -> Decoder:
    c.must("relative_attention_num_buckets", _BUCKETS)
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    found = encoder(c, MPNET, kinds=0, offset=_OFFSET)
    found = replace(
        found,
        blocks=tuple(_relative(block) for block in found.blocks),
        relative=Relative("mpnet.encoder.relative_attention_bias", _BUCKETS, heads, _FARTHEST, both=True),
        aside=(*found.aside, "mpnet.pooler.", "pooler."),
    )
    if not scores(c):
        return found
    inner = Dense(Linear(hidden, (Part("classifier.dense", hidden),), None, bias=True), "tanh")
    return replace(found, classifier=classifier(c, inner, "classifier.out_proj"))


def _relative(block: Block) -> Block:
    assert isinstance(block.mixer, Attention), "made so"
    return replace(block, mixer=replace(block.mixer, relative=True))


FAMILIES = tuple(
    Family(architecture=name, declare=mpnet)
    for name in ("MPNetModel", "MPNetForMaskedLM", "MPNetForSequenceClassification")
)
