"""InternLM 2 and 3, Baichuan 1 and 2: Llama with projections of its own; rows of Baichuan 2's head have length 1."""

from __future__ import annotations

from dataclasses import replace

from sapwood.arch.families.common import Layout, alibi_slopes, block, decoder, gqa, mlp
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import STILL, Decoder, Linear

INTERNLM2 = Layout(
    embed="model.tok_embeddings",
    head="output",
    mixer_norm="attention_norm",
    ffn_norm="ffn_norm",
    qkv=("attention.wqkv",),
    out="attention.wo",
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
)
BAICHUAN = Layout(qkv=("self_attn.W_pack",))
_SECOND = 125696  # entries of Baichuan 2's vocabulary


def internlm2(c: HfConfig) -> Decoder:
    bias = c.boolean("bias", False)
    attention = gqa(c, INTERNLM2, qkv_bias=bias, out_bias=bias, by_turns=True)
    layer = block(c, attention, mlp(c, INTERNLM2), INTERNLM2)
    return decoder(c, [layer] * c.integer("num_hidden_layers"), INTERNLM2)


def internlm3(c: HfConfig) -> Decoder:
    bias = c.boolean("bias", False)
    attention = gqa(c, qkv_bias=c.boolean("qkv_bias", False), out_bias=bias)
    return decoder(c, [block(c, attention, mlp(c, bias=bias))] * c.integer("num_hidden_layers"))


def baichuan_7b(c: HfConfig) -> Decoder:
    return _baichuan(c, falls=False)


def baichuan(c: HfConfig) -> Decoder:
    """Those of 13 billion are not turned; the second's vocabulary tells it."""
    found = _baichuan(c, falls=c.integer("hidden_size") > 4096)
    if c.integer("vocab_size") < _SECOND or not isinstance(found.head, Linear):
        return found
    return replace(found, head=replace(found.head, unit_rows=True))


def _baichuan(c: HfConfig, *, falls: bool) -> Decoder:
    c.spelt(max_position_embeddings="model_max_length")
    attention = gqa(c, BAICHUAN, rope=STILL if falls else None)
    if falls:
        attention = replace(attention, slopes=alibi_slopes(attention.num_heads))
    return decoder(c, [block(c, attention, mlp(c))] * c.integer("num_hidden_layers"))


FAMILIES = (
    Family(architecture="InternLM2ForCausalLM", declare=internlm2),
    Family(architecture="InternLM3ForCausalLM", declare=internlm3),
    Family(architecture="BaiChuanForCausalLM", declare=baichuan_7b),
    Family(architecture="BaichuanForCausalLM", declare=baichuan),
)
