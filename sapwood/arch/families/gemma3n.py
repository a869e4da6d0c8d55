"""Gemma 3n, the text of it: streams that blocks predict and correct, gates few of which are open, vectors of each token for each
layer, and last layers that share what earlier ones keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from sapwood.arch.altup import Altered, Laurel, SparseMlp, Streams
from sapwood.arch.beside import Beside, Factor
from sapwood.arch.families.common import ACTIVATIONS, FULL, SLIDING, decoder, every, gqa, mlp
from sapwood.arch.families.gemma3 import GLOBAL_THETA, LOCAL_THETA
from sapwood.arch.families.gemma4 import GEMMA4, shared, vectors
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Activation, Attention, Block, Decoder, Linear, Mlp, Norm, Part, Rope
from sapwood.arch.rope import parse_rope
from sapwood.base.errors import ModelError

_PATTERN = 5  # every fifth layer is global, where nothing says otherwise


def gemma3n(c: HfConfig) -> Decoder:
    c.must("altup_active_idx", 0)
    c.must("altup_correct_scale", True)
    c.ignore("altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar", "cache_implementation")
    c.ignore("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window")
    kinds, hidden = every(c, _PATTERN), c.integer("hidden_size")
    own, others = len(kinds) - c.count("num_kv_shared_layers", 15), c.integer("altup_num_inputs", 4) - 1
    inners, sparse = _inners(c, len(kinds)), _sparsity(c, len(kinds))
    blocks = [
        _block(c, _attention(c, kinds[i]), _mlp(c, inners[i], sparse[i]), shared(kinds, i, own))
        for i in range(len(kinds))
    ]
    found = decoder(c, blocks, GEMMA4, embed_scale=hidden**0.5, tied=True)
    unread = ("k_proj", "v_proj", "k_norm", "v_norm")  # of layers that have none of their own
    return replace(
        found,
        vectors=vectors(c, c.integer("hidden_size_per_layer_input", 256)),
        streams=Streams(
            *(
                Linear(hidden, tuple(Part(f"model.altup_{name}.{i}", hidden) for i in range(others)), None)
                for name in ("projections", "unembed_projections")
            )
        ),
        logit_cap=c.number("final_logit_softcapping") if c.has("final_logit_softcapping") else None,
        aside=tuple(f"model.layers.{i}.self_attn.{name}." for i in range(own, len(kinds)) for name in unread),
    )


def _block(c: HfConfig, attention: Attention, ffn: Mlp | SparseMlp, shares: int | None) -> Block:
    hidden, size, number = (
        c.integer("hidden_size"),
        c.integer("hidden_size_per_layer_input", 256),
        c.integer("altup_num_inputs", 4),
    )
    rank = c.integer("laurel_rank", 64)
    if shares is not None:
        queries, _, _ = attention.qkv.parts
        attention = replace(attention, qkv=replace(attention.qkv, parts=(queries,)), k_norm=None, v_norm=None)

    def linear(inp: int, name: str, out: int) -> Linear:
        return Linear(inp, (Part(name, out),), None)

    def norm(name: str) -> Norm:
        return GEMMA4.normed(c, name)

    return Altered(
        mixer_norm=norm("input_layernorm"),
        mixer=attention,
        after_mixer=norm("post_attention_layernorm"),
        ffn_norm=norm("pre_feedforward_layernorm"),
        ffn=ffn,
        after_ffn=norm("post_feedforward_layernorm"),
        beside=Beside(
            gate=linear(hidden, "per_layer_input_gate", size),
            out=linear(size, "per_layer_projection", hidden),
            norm=norm("post_per_layer_input_norm"),
            activation=_activation(c),
        ),
        shares=shares,
        laurel=Laurel(
            left=linear(hidden, "laurel.linear_left", rank),
            right=linear(rank, "laurel.linear_right", hidden),
            norm=norm("laurel.post_laurel_norm"),
        ),
        router=linear(hidden, "altup.modality_router", number),
        router_norm=norm("altup.router_norm"),
        predict=linear(number, "altup.prediction_coefs", number**2),
        correct=linear(number, "altup.correction_coefs", number),
        scaled=Factor("altup.correct_output_scale", hidden),
    )


def _activation(c: HfConfig) -> Activation:
    return c.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")


def _attention(c: HfConfig, kind: str) -> Attention:
    dim, bias = c.integer("head_dim", 256), c.boolean("attention_bias", False)
    found = gqa(
        c,
        window=c.integer("sliding_window") if kind == SLIDING else None,
        rope=_rope(c, kind, dim),
        scale=1.0,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="heads",
        head_dim=dim,
    )
    return replace(found, v_norm=GEMMA4.normed(c, "", dim))


def _rope(c: HfConfig, kind: str, dim: int) -> Rope:
    if c.has("rope_parameters"):
        theta = GLOBAL_THETA if kind == FULL else LOCAL_THETA
        return parse_rope(c, c.section("rope_parameters").section(kind), head_dim=dim, theta=theta)
    if kind == FULL:
        return Rope(dim, c.number("rope_theta", GLOBAL_THETA))
    return Rope(dim, c.number("rope_local_base_freq", LOCAL_THETA))


def _mlp(c: HfConfig, inner: int, sparsity: float) -> Mlp | SparseMlp:
    """Of a sparse one such a share of gates is closed, if they are normally distributed."""
    found = mlp(c, inner=inner, activation=_activation(c))
    if not sparsity:
        return found
    assert isinstance(found.gate_up, Linear), "as it is made"
    return SparseMlp(found.gate_up, found.down, found.activation, NormalDist().inv_cdf(sparsity))


def _inners(c: HfConfig, number: int) -> Sequence[int]:
    """How wide each layer's is."""
    found = c.field("intermediate_size")
    if not isinstance(found, list | tuple):
        return [c.integer("intermediate_size")] * number
    inners = c.integers("intermediate_size")
    if len(inners) != number:
        raise ModelError(f"config.json: intermediate_size has {len(inners)} entries, num_hidden_layers is {number}.")
    return inners


def _sparsity(c: HfConfig, number: int) -> Sequence[float]:
    """How many gates of each layer are closed, 0 for none in particular."""
    name = "activation_sparsity_pattern"
    found = c.field(name)
    if found is None:
        return [0.95 if number > 10 and i < 10 else 0.0 for i in range(number)]
    shares = found if isinstance(found, list | tuple) else [found] * number
    if len(shares) != number or not all(isinstance(one, int | float) and 0 <= one < 1 for one in shares):
        raise ModelError(f"config.json: {name} must be {number} numbers from 0 to less than 1, got {found!r}.")
    return [float(one) for one in shares]


FAMILIES = (Family(architecture="Gemma3nForCausalLM", declare=gemma3n),)
