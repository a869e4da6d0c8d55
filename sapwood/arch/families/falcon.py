"""Falcon, BLOOM and MPT: fused projections, and scores that fall with distance or heads that are turned."""

from __future__ import annotations

import math
from dataclasses import replace

from sapwood.arch.families.common import Layout, alibi_slopes, block, decoder, gqa, plain_mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Decoder

BLOOM = Layout(
    embed="transformer.word_embeddings",
    block="transformer.h.{}.",
    norm="transformer.ln_f",
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    eps="layer_norm_epsilon",
    center=True,
    bias=True,
)
FALCON_TWO = replace(BLOOM, mixer_norm="ln_attn", ffn_norm="ln_mlp")
MPT = Layout(
    embed="transformer.wte",
    block="transformer.blocks.{}.",
    norm="transformer.norm_f",
    mixer_norm="norm_1",
    ffn_norm="norm_2",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    up=("ffn.up_proj",),
    down="ffn.down_proj",
    eps="layer_norm_epsilon",
    center=True,
)


_SHAPE = (("new_decoder_architecture", False), ("parallel_attn", True), ("alibi", False), ("multi_query", True))


def falcon(c: HfConfig) -> Decoder:
    c.spelt(
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        num_key_value_heads="num_kv_heads",
        intermediate_size="ffn_hidden_size",
        hidden_act="activation",
    )
    c.assume(max_position_embeddings=2048, hidden_act="gelu")
    new, parallel, alibi, shared = (c.boolean(*one) for one in _SHAPE)
    heads, bias = c.integer("num_attention_heads"), c.boolean("bias", False)
    many = c.integer("num_key_value_heads", c.integer("n_head_kv", heads))
    kv_heads = many if new else 1 if shared else heads
    two = new and parallel and c.integer("num_ln_in_parallel_attn", 2) == 2
    c.ignore("num_ln_in_parallel_attn", "num_kv_heads", "n_head_kv")
    layout = FALCON_TWO if two else BLOOM
    rope = STILL if alibi else None
    attention = gqa(c, layout, rope=rope, qkv_bias=bias, out_bias=bias, kv_heads=kv_heads, by_turns=True)
    if alibi:
        c.ignore("rope_parameters", "rope_theta", "rope_scaling")
        attention = replace(attention, slopes=tuple(one * attention.scale for one in alibi_slopes(heads)))
    layer = block(c, attention, plain_mlp(c, layout, bias=bias), layout)
    if parallel:
        layer = replace(layer, parallel=True, ffn_norm=layer.ffn_norm if two else None)
    return replace(decoder(c, [layer] * c.integer("num_hidden_layers"), layout, tied=True), root="transformer.")


def bloom(c: HfConfig) -> Decoder:
    c.spelt(hidden_size="n_embed", num_hidden_layers="n_layer", num_attention_heads="n_head")
    c.spelt(max_position_embeddings="seq_length")
    c.assume(max_position_embeddings=2048)
    c.refuse("apply_residual_connection_post_layernorm", because="what is added to is not normed")
    c.ignore("slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion")
    c.ignore("skip_bias_add", "skip_bias_add_qkv", "offset_alibi")  # of its training
    attention = gqa(c, BLOOM, rope=STILL, qkv_bias=True, out_bias=True, by_turns=True)
    attention = replace(attention, slopes=alibi_slopes(attention.num_heads))
    layer = block(c, attention, plain_mlp(c, BLOOM, activation="gelu_tanh", bias=True), BLOOM)
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), BLOOM, tied=True)
    return replace(found, embed_norm=BLOOM.normed(c, "transformer.word_embeddings_layernorm"), root="transformer.")


def mpt(c: HfConfig) -> Decoder:
    c.spelt(hidden_size="d_model", num_hidden_layers="n_layers", num_attention_heads="n_heads")
    c.spelt(max_position_embeddings="max_seq_len")
    c.assume(layer_norm_epsilon=1e-5)
    c.must("expansion_ratio", 4)
    c.must("no_bias", True)
    c.must("norm_type", "low_precision_layernorm")
    c.refuse("logit_scale", because="logits are not scaled")
    c.ignore("learned_pos_emb", "embedding_fraction", "init_device", "init_config", "tokenizer_name", "verbose")
    a = c.section("attn_config")
    a.must("attn_type", "multihead_attention")
    a.must("alibi", True)
    a.refuse("clip_qkv", "qk_ln", "prefix_lm", "attn_uses_sequence_id", because="attention is plain")
    scale = a.number("softmax_scale") if a.has("softmax_scale") else None
    attention = gqa(c, MPT, rope=STILL, scale=scale)
    slopes = _mpt_slopes(attention.num_heads, a.integer("alibi_bias_max", 8))
    attention = replace(attention, slopes=slopes)
    layer = block(c, attention, plain_mlp(c, MPT, activation="gelu"), MPT)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), MPT, tied=True)


def _mpt_slopes(num_heads: int, most: int) -> tuple[float, ...]:
    """A series of a power of two; of one that is longer than the heads are many, every second one first."""
    whole = 1 << math.ceil(math.log2(num_heads))
    slopes = [2 ** (-most * (i + 1) / whole) for i in range(whole)]
    return tuple(slopes if whole == num_heads else (slopes[1::2] + slopes[::2])[:num_heads])


FAMILIES = (
    Family(architecture="FalconForCausalLM", declare=falcon),
    Family(architecture="BloomForCausalLM", declare=bloom),
    Family(architecture="MptForCausalLM", declare=mpt),
    Family(architecture="MPTForCausalLM", declare=mpt),
)
