"""Qwen3-Next and Qwen3.5 (dense and with experts): gated delta nets, and each fourth layer attention with a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from sapwood.arch.draft_head import head_beside
from sapwood.arch.experts import Experts
from sapwood.arch.families.common import FULL, Layout, block, decoder, gqa, mlp
from sapwood.arch.families.qwen_moe import routed, shared, sparse_layers
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Block, Decoder, Linear, Mixer, Mlp, Norm, Part
from sapwood.arch.recurrent import Conv, DeltaNet, PerHead
from sapwood.arch.rope import read_rope
from sapwood.base.errors import ModelError

_LINEAR = "linear_attention"
_LAYOUT = Layout(offset=1.0)
_AT = "linear_attn."


def qwen3_next(c: HfConfig) -> Decoder:
    sparse, plain = shared(c, routed(c)), mlp(c)
    return _decoder(c, _delta(c, _by_turns(c)), [sparse if one else plain for one in sparse_layers(c)])


def qwen3_5(c: HfConfig) -> Decoder:
    return _decoder(c, _delta(c, _apart(c)), [mlp(c)] * c.integer("num_hidden_layers"))


def qwen3_5_moe(c: HfConfig) -> Decoder:
    c.ignore("intermediate_size")  # of nothing that there is
    return _decoder(c, _delta(c, _apart(c)), [shared(c, routed(c, normed=True))] * c.integer("num_hidden_layers"))


def _decoder(c: HfConfig, delta: DeltaNet, ffns: Sequence[Mlp | Experts]) -> Decoder:
    c.must("attn_output_gate", True)
    c.ignore("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    mixers: Mapping[str, Mixer] = {_LINEAR: delta, FULL: _attention(c)}
    blocks: list[Block] = [block(c, mixers[kind], ffn, _LAYOUT) for kind, ffn in zip(_layers(c), ffns, strict=True)]
    return _with_next(decoder(c, blocks, _LAYOUT), block(c, mixers[FULL], ffns[0], _LAYOUT))


def _with_next(made: Decoder, layer: Block) -> Decoder:
    """A checkpoint may have one more layer, which predicts one more token."""
    head = head_beside(
        made,
        layer,
        block_prefix="mtp.layers.0.",
        join="mtp.fc",
        norms=("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"),
        within="mtp.",
    )
    return replace(made, aside=("mtp.",), mtp=head)


def _layers(c: HfConfig) -> tuple[str, ...]:
    number, interval = c.integer("num_hidden_layers"), c.integer("full_attention_interval", 4)
    kinds = tuple(FULL if (i + 1) % interval == 0 else _LINEAR for i in range(number))
    if c.has("layer_types"):
        kinds = c.strings("layer_types")
    if len(kinds) != number or not {*kinds} <= {_LINEAR, FULL}:
        raise ModelError(
            f"config.json: layer_types must be num_hidden_layers ({number}) words of {_LINEAR}, {FULL}, got {list(kinds)}."
        )
    return kinds


def _attention(c: HfConfig) -> Attention:
    """Queries of a head and its gate lie behind each other in one tensor."""
    dim, bias = c.integer("head_dim", 256), c.boolean("attention_bias", False)
    rope = read_rope(c, head_dim=dim, partial=0.25)
    part = gqa(c, _LAYOUT, rope=rope, qkv_bias=bias, out_bias=bias, qk_norm="heads")
    queries, keys, values = part.qkv.parts
    queries = replace(queries, turn=dim)
    return replace(part, qkv=replace(part.qkv, parts=(queries, keys, values, queries)), gated=True)


class _Heads(NamedTuple):
    """Of a delta net: how many share keys, how many have values, and the sizes of both."""

    keys: int
    values: int
    key_dim: int
    dim: int

    @property
    def each(self) -> int:
        """Heads of values that share a key."""
        return self.values // self.keys


def _heads(c: HfConfig) -> _Heads:
    keys, values = c.integer("linear_num_key_heads", 16), c.integer("linear_num_value_heads", 32)
    if values % keys:
        raise ModelError(
            f"config.json: linear_num_value_heads ({values}) is no multiple of linear_num_key_heads ({keys})."
        )
    return _Heads(keys, values, c.integer("linear_key_head_dim", 128), c.integer("linear_value_head_dim", 128))


def _by_turns(c: HfConfig) -> tuple[Part, ...]:
    """Queries, keys, values, gates, and two numbers for each head: what heads with one key have lies together."""
    keys, values, key_dim, dim = heads = _heads(c)
    wide, each = heads.each * dim, heads.each
    key = Part(f"{_AT}in_proj_qkvz", keys * key_dim, key_dim, turn=key_dim)
    value = Part(f"{_AT}in_proj_qkvz", values * dim, wide, turn=wide)
    number = Part(f"{_AT}in_proj_ba", values, each, turn=each)
    return key, key, value, value, number, number


def _apart(c: HfConfig) -> tuple[Part, ...]:
    """The same in runs."""
    keys, values, key_dim, dim = heads = _heads(c)
    wide, each = heads.each * dim, heads.each
    key = Part(f"{_AT}in_proj_qkv", keys * key_dim, key_dim)
    value, gate = (Part(f"{_AT}{name}", values * dim, wide) for name in ("in_proj_qkv", "in_proj_z"))
    b, a = (Part(f"{_AT}{name}", values, each) for name in ("in_proj_b", "in_proj_a"))
    return key, key, value, gate, b, a


def _delta(c: HfConfig, parts: tuple[Part, ...]) -> DeltaNet:
    hidden, at = c.integer("hidden_size"), _AT
    key_heads, heads, key_dim, dim = sizes = _heads(c)
    keys, values, wide = key_heads * key_dim, heads * dim, sizes.each * dim
    return DeltaNet(
        num_heads=heads,
        head_dim=dim,
        num_groups=key_heads,
        state_size=key_dim,
        inp=Linear(hidden, parts, "out"),
        conv=Conv(
            f"{at}conv1d",
            (Part("", keys, key_dim), Part("", keys, key_dim), Part("", values, wide)),
            c.integer("linear_conv_kernel_dim", 4),
        ),
        dt_bias=PerHead(f"{at}dt_bias", heads),
        a_log=PerHead(f"{at}A_log", heads),
        norm=Norm(f"{at}norm", dim, c.number("rms_norm_eps")),
        out=Linear(values, (Part(f"{at}out_proj", hidden),), "in", unit=dim),
    )


FAMILIES = (
    Family(architecture="Qwen3NextForCausalLM", declare=qwen3_next),
    Family(architecture="Qwen3_5ForCausalLM", declare=qwen3_5),
    Family(architecture="Qwen3_5MoeForCausalLM", declare=qwen3_5_moe),
)
