"""GPT-2, StarCoder 1, GPT-J, GPT-NeoX with Pythia, and OPT: layer norms and MLPs with biases and without a gate."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import Layout, block, decoder, gqa, plain_mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Decoder, Rope
from sapwood.arch.positions import Positions
from sapwood.arch.rope import read_rope

GPT2 = Layout(
    embed="transformer.wte",
    block="transformer.h.{}.",
    norm="transformer.ln_f",
    mixer_norm="ln_1",
    ffn_norm="ln_2",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    transposed=True,
    eps="layer_norm_epsilon",
    center=True,
    bias=True,
)
BIG_CODE = replace(GPT2, transposed=False)
GPT_J = replace(
    BIG_CODE,
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up=("mlp.fc_in",),
    down="mlp.fc_out",
)
NEOX = Layout(
    embed="gpt_neox.embed_in",
    block="gpt_neox.layers.{}.",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    eps="layer_norm_eps",
    center=True,
    bias=True,
)
OPT = Layout(
    embed="model.decoder.embed_tokens",
    block="model.decoder.layers.{}.",
    norm="model.decoder.final_layer_norm",
    mixer_norm="self_attn_layer_norm",
    ffn_norm="final_layer_norm",
    out="self_attn.out_proj",
    up=("fc1",),
    down="fc2",
    eps=1e-5,
    center=True,
    bias=True,
)
_MARKS = ("summary_type", "summary_use_proj", "summary_proj_to_labels", "n_ctx", "reorder_and_upcast_attn")


def _spelt(c: HfConfig) -> None:
    c.spelt(
        hidden_size="n_embd",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
        hidden_act="activation_function",
    )
    c.ignore(*_MARKS)


def gpt2(c: HfConfig) -> Decoder:
    _spelt(c)
    return _gpt2(c, GPT2)


def big_code(c: HfConfig) -> Decoder:
    _spelt(c)
    c.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "pad_key_length")
    c.ignore("validate_runner_input", "max_sequence_length", "max_batch_size", "pre_allocate_kv_cache")
    c.ignore("num_key_value_heads")  # follows from multi_query
    return _gpt2(c, BIG_CODE)


def _gpt2(c: HfConfig, layout: Layout) -> Decoder:
    c.must("scale_attn_weights", True)
    c.refuse("scale_attn_by_inverse_layer_idx", "add_cross_attention", because="layers are all alike")
    shared = layout is BIG_CODE and c.boolean("multi_query", True)
    kv_heads = 1 if shared else c.integer("num_attention_heads")
    by_turns = layout is BIG_CODE and not shared
    attention = gqa(c, layout, rope=STILL, qkv_bias=True, out_bias=True, kv_heads=kv_heads, by_turns=by_turns)
    layer = block(c, attention, plain_mlp(c, layout, bias=True), layout)
    positions = Positions("transformer.wpe", c.integer("max_position_embeddings"), c.integer("hidden_size"))
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), layout, tied=True)
    return replace(found, positions=positions, root="transformer.")


def gpt_j(c: HfConfig) -> Decoder:
    _spelt(c)
    c.ignore("scale_attn_weights", "rotary")
    attention = gqa(c, GPT_J, rope=Rope(c.integer("rotary_dim", 64), 10000.0, interleaved=True))
    layer = block(c, attention, plain_mlp(c, GPT_J, bias=True), GPT_J)
    layer = replace(layer, ffn_norm=None, parallel=True)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), GPT_J, head_bias=True)


def neox(c: HfConfig) -> Decoder:
    c.spelt(partial_rotary_factor="rotary_pct", rope_theta="rotary_emb_base")
    bias = c.boolean("attention_bias", True)
    rope = read_rope(c, head_dim=c.integer("hidden_size") // c.integer("num_attention_heads"), partial=0.25)
    attention = gqa(c, NEOX, rope=rope, qkv_bias=bias, out_bias=bias, by_turns=True)
    layer = block(c, attention, plain_mlp(c, NEOX, bias=True), NEOX)
    layer = replace(layer, parallel=c.boolean("use_parallel_residual", True))
    return decoder(c, [layer] * c.integer("num_hidden_layers"), NEOX)


def opt(c: HfConfig) -> Decoder:
    c.spelt(intermediate_size="ffn_dim", hidden_act="activation_function")
    c.must("do_layer_norm_before", True)
    c.must("layer_norm_elementwise_affine", True)
    c.must("word_embed_proj_dim", c.integer("hidden_size"))
    c.refuse("_remove_final_layer_norm", because="the last norm is expected")
    c.ignore("init_std", "layerdrop")
    bias, hidden = c.boolean("enable_bias", True), c.integer("hidden_size")
    attention = gqa(c, OPT, rope=STILL, qkv_bias=bias, out_bias=bias)
    layer = block(c, attention, plain_mlp(c, OPT, bias=bias), OPT)
    positions = Positions("model.decoder.embed_positions", c.integer("max_position_embeddings"), hidden, offset=2)
    found = decoder(c, [layer] * c.integer("num_hidden_layers"), OPT, tied=True)
    return replace(found, positions=positions)


FAMILIES = (
    Family(architecture="GPT2LMHeadModel", declare=gpt2),
    Family(architecture="GPTBigCodeForCausalLM", declare=big_code),
    Family(architecture="GPTJForCausalLM", declare=gpt_j),
    Family(architecture="GPTNeoXForCausalLM", declare=neox),
    Family(architecture="OPTForCausalLM", declare=opt),
)
