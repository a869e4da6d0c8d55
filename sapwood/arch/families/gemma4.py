"""Gemma 4, the text of it (dense, and with experts beside the MLPs): heads larger where layers see everything, values normed, a factor of each layer, and in the small
ones vectors of each token for each layer, and last layers that share what earlier ones keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sapwood.arch.beside import Beside, Factor, Vectors
from sapwood.arch.branches import Branches
from sapwood.arch.experts import Gauged
from sapwood.arch.families.common import ACTIVATIONS, FULL, SLIDING, Layout, block, decoder, every, gqa, mlp
from sapwood.arch.families.mixture import Names, experts
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Block, Decoder, Embedding, Linear, Mlp, Part
from sapwood.arch.rope import parse_rope
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection

GEMMA4 = Layout(ffn_norm="pre_feedforward_layernorm")
_EXPERTS = Names(at="experts", gate="gate_up_proj", up="gate_up_proj", down="down_proj", bare=True)


def gemma4(c: HfConfig) -> Decoder:
    c.must("use_bidirectional_attention", None)
    c.ignore("num_experts", "top_k_experts", "moe_intermediate_size", "sliding_window")
    kinds = every(c, 6)
    own = len(kinds) - c.count("num_kv_shared_layers", 0)
    blocks = [_block(c, kinds, layer, own) for layer in range(len(kinds))]
    found = decoder(c, blocks, GEMMA4, embed_scale=c.integer("hidden_size") ** 0.5, tied=True)
    unread = ("k_proj", "v_proj", "k_norm", "v_norm")  # of layers that have none of their own
    return replace(
        found,
        vectors=vectors(c, _vector_size(c)),
        logit_cap=c.number("final_logit_softcapping") if c.has("final_logit_softcapping") else None,
        aside=tuple(f"model.layers.{i}.self_attn.{name}." for i in range(own, len(kinds)) for name in unread),
    )


def _block(c: HfConfig, kinds: tuple[str, ...], layer: int, own: int) -> Block:
    kind = kinds[layer]
    shares = shared(kinds, layer, own)
    wide = shares is not None and c.boolean("use_double_wide_mlp", False)
    activation = c.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    dense = mlp(c, activation=activation, inner=c.integer("intermediate_size") * (2 if wide else 1))
    size, hidden = _vector_size(c), c.integer("hidden_size")
    beside = Beside(
        gate=Linear(hidden, (Part("per_layer_input_gate", size),), None),
        out=Linear(size, (Part("per_layer_projection", hidden),), None),
        norm=GEMMA4.normed(c, "post_per_layer_input_norm"),
        activation=activation,
    )
    return replace(
        block(c, _attention(c, kind, without=shares is not None), dense, GEMMA4),
        ffn=_branches(c, dense) if c.boolean("enable_moe_block", False) else dense,
        after_mixer=GEMMA4.normed(c, "post_attention_layernorm"),
        after_ffn=GEMMA4.normed(c, "post_feedforward_layernorm"),
        beside=beside if size else None,
        factor=Factor("layer_scalar"),
        shares=shares,
    )


def _branches(c: HfConfig, dense: Mlp) -> Branches:
    hidden, selection = c.integer("hidden_size"), Selection(c.integer("top_k_experts"), renormalised=True)
    found = experts(c, _EXPERTS, inner=c.integer("moe_intermediate_size"), selection=selection)
    router = Gauged(
        linear=Linear(hidden, (Part("router.proj", found.count),), None),
        norm=GEMMA4.normed(c, "", hidden),
        factor=Factor("router.scale", hidden),
        scale=hidden**-0.5,
    )
    return Branches(
        mlp=dense,
        after=GEMMA4.normed(c, "post_feedforward_layernorm_1"),
        experts=replace(found, router=router, activation=dense.activation),
        experts_norm=GEMMA4.normed(c, "pre_feedforward_layernorm_2"),
        after_experts=GEMMA4.normed(c, "post_feedforward_layernorm_2"),
        factors=Factor("router.per_expert_scale", found.count),
    )


def shared(kinds: Sequence[str], layer: int, own: int) -> int | None:
    """The layer whose keys and values one takes that is not among the first so many, which have their own: the last of its kind."""
    return None if layer < own else max(i for i in range(own) if kinds[i] == kinds[layer])


def _attention(c: HfConfig, kind: str, *, without: bool) -> Attention:
    head_dim, kv_heads = _heads(c, kind)
    bias, full = c.boolean("attention_bias", False), kind == FULL
    rope = parse_rope(c, c.section("rope_parameters").section(kind), head_dim=head_dim, theta=1e6 if full else 1e4)
    found = gqa(
        c,
        window=c.integer("sliding_window") if kind == SLIDING else None,
        rope=rope,
        scale=1.0,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="heads",
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
    queries, keys, _ = found.qkv.parts
    if without:
        return replace(found, qkv=replace(found.qkv, parts=(queries,)), k_norm=None)
    found = replace(found, v_norm=GEMMA4.normed(c, "", head_dim))
    if full and c.boolean("attention_k_eq_v", False):
        found = replace(found, qkv=replace(found.qkv, parts=(queries, keys)))
    return found


def _heads(c: HfConfig, kind: str) -> tuple[int, int]:
    """Size of a head, and how many keep keys and values, of layers of a kind."""
    head_dim, kv_heads = c.integer("head_dim", 256), c.integer("num_key_value_heads")
    own = c.section("per_layer_config") if c.has("per_layer_config") else None
    found = {int(layer): own.section(layer) for layer in own.names()} if own is not None else {}
    if kind != FULL:
        c.ignore("global_head_dim", "num_global_key_value_heads")
        return head_dim, kv_heads
    if not found:
        few = c.integer("num_global_key_value_heads", kv_heads) if c.boolean("attention_k_eq_v", False) else kv_heads
        return c.integer("global_head_dim", 512), few
    sizes = {
        (one.integer("head_dim", head_dim), one.integer("num_key_value_heads", kv_heads)) for one in found.values()
    }
    if len(sizes) != 1:
        raise ModelError("config.json: per_layer_config: layers that see everything must be alike.")
    return sizes.pop()


def _vector_size(c: HfConfig) -> int:
    """0 where the config says that there are none; where it says nothing there are."""
    name = "hidden_size_per_layer_input"
    return 0 if name in c.names() and not c.has(name) else c.count(name, 256)


def vectors(c: HfConfig, size: int) -> Vectors | None:
    """Vectors of so many numbers, none of 0."""
    num_layers, hidden = c.integer("num_hidden_layers"), c.integer("hidden_size")
    vocab = c.integer("vocab_size_per_layer_input", 262144)
    if not size:
        return None
    return Vectors(
        embed=Embedding("model.embed_tokens_per_layer", vocab, num_layers * size, size**0.5),
        project=Linear(hidden, (Part("model.per_layer_model_projection", num_layers * size),), None),
        norm=GEMMA4.normed(c, "model.per_layer_projection_norm", size),
        scale=hidden**-0.5,
    )


FAMILIES = (Family(architecture="Gemma4ForCausalLM", declare=gemma4),)
