"""Nomic's BERT: an encoder with rotary positions, a gate, and norms of sums, whose config is spelt as its repository or as transformers has it."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import Layout, decoder, gqa, mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Block, Decoder
from sapwood.arch.positions import Segments
from sapwood.arch.rope import read_rope

NOMIC = Layout(
    embed="embeddings.word_embeddings",
    block="encoder.layers.{}.",
    mixer_norm="norm1",
    ffn_norm="norm2",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    up=("mlp.fc12", "mlp.fc11"),
    down="mlp.fc2",
    eps="layer_norm_eps",
    center=True,
    bias=True,
)
_ASIDE = ("pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids")


def nomic(c: HfConfig) -> Decoder:
    published = c.has("n_embd")
    if published:
        _published(c)
    hidden = c.integer("hidden_size")
    c.ignore("tie_word_embeddings", "classifier_dropout")
    rope = read_rope(c, head_dim=hidden // c.integer("num_attention_heads"), theta=1000.0)
    bias = published and c.boolean("qkv_proj_bias", False)
    attention = replace(gqa(c, NOMIC, rope=rope, qkv_bias=bias, out_bias=bias), causal=False)
    layer = Block(
        mixer_norm=None,
        mixer=attention,
        ffn_norm=None,
        ffn=mlp(c, NOMIC, activation="silu" if published else None),
        after_mixer=NOMIC.normed(c, NOMIC.mixer_norm),
        after_ffn=NOMIC.normed(c, NOMIC.ffn_norm),
        summed=True,
    )
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), NOMIC)
    return replace(
        found,
        norm=None,
        head=None,
        segments=Segments("embeddings.token_type_embeddings", c.integer("type_vocab_size", 2), hidden),
        embed_norm=NOMIC.normed(c, "emb_ln"),
        aside=_ASIDE,
    )


def _published(c: HfConfig) -> None:
    """The config of the family's repository, and what its code can do that its models do not."""
    c.spelt(
        hidden_size="n_embd",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
        layer_norm_eps="layer_norm_epsilon",
        rope_theta="rotary_emb_base",
        partial_rotary_factor="rotary_emb_fraction",
    )
    for name, value in {
        "activation_function": "swiglu",
        "prenorm": False,
        "causal": False,
        "use_rms_norm": False,
    }.items():
        c.must(name, value)
    c.must("rotary_emb_interleaved", False)
    for name in ("mlp_fc1_bias", "mlp_fc2_bias", "parallel_block", "rotary_emb_scale_base"):
        c.must(name, None if name == "rotary_emb_scale_base" else False)
    c.must("scale_attn_weights", True)
    c.refuse("scale_attn_by_inverse_layer_idx", because="layers are all alike")
    c.refuse("rotary_scaling_factor", because="angles are the same for texts of all lengths")
    c.ignore("max_trained_positions", "pad_vocab_size_multiple", "reorder_and_upcast_attn", "dense_seq_output")
    c.ignore(
        "fused_bias_fc", "fused_dropout_add_ln", "last_layer_subset", "summary_activation", "summary_first_dropout"
    )
    c.ignore(
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "use_xentropy",
        "attn_pdrop",
        "parallel_block_tied_norm",
    )


FAMILIES = tuple(Family(architecture=name, declare=nomic) for name in ("NomicBertModel", "NomicBertForMaskedLM"))
