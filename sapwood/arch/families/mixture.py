"""What families of experts share: how configs state them, and how checkpoints name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from sapwood.arch.draft_head import head_beside
from sapwood.arch.experts import Experts, Offsets, Stack
from sapwood.arch.families.common import ACTIVATIONS, block, decoder, mlp
from sapwood.arch.gguf import GgufKeys
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Attention, Decoder, Linear, Mlp, Part
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Names:
    """Of the tensors of a feed-forward, under `at`: those of gate, up and down of each expert, by a {}, or of all. One name for
    gate and up is that of both. `bare` ones are as in `Stack`, `transposed` ones have their inputs first."""

    at: str = "mlp"
    router: str = "gate"
    gate: str = "experts.{}.gate_proj"
    up: str = "experts.{}.up_proj"
    down: str = "experts.{}.down_proj"
    bare: bool = False
    transposed: bool = False


PLAIN = Names()
MIXTRAL = Names(at="block_sparse_moe", gate="experts.{}.w1", up="experts.{}.w3", down="experts.{}.w2")
JOINED = Names(gate="experts.gate_up_proj", up="experts.gate_up_proj", down="experts.down_proj", bare=True)
TURNED = replace(JOINED, transposed=True)
_SIGMOID = 2  # GGUF's number
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


GGUF_NAMES = MappingProxyType({
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
})  # fmt: skip
"""Of most families in GGUF files."""


def gguf_experts(m: GgufKeys) -> dict[str, Any]:
    """What GGUF files say of experts, in the fields of `num_experts` and `grouped`; those are scored by a sigmoid."""
    if (kind := m.get("expert_gating_func", _SIGMOID)) != _SIGMOID:
        raise m.wrong("expert_gating_func", f"= {kind} is not how this family scores experts, which is {_SIGMOID}")
    return {
        "num_experts": m.count("expert_count"),
        "num_experts_per_tok": m.count("expert_used_count"),
        "moe_intermediate_size": m.count("expert_feed_forward_length"),
        "n_shared_experts": m.get("expert_shared_count", 0),
        "first_k_dense_replace": m.get("leading_dense_block_count", 0),
        "routed_scaling_factor": m.number("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(m.get("expert_weights_norm", False)),
        "n_group": m.count("expert_group_count", 1),
        "topk_group": m.count("expert_group_used_count", 1),
    }


def num_experts(c: HfConfig) -> int:
    """As the config says in one of some fields."""
    return c.integer(next((name for name in _COUNTS if c.has(name)), _COUNTS[0]))


def experts(
    c: HfConfig,
    names: Names = PLAIN,
    *,
    other: Names | None = None,
    inner: int,
    selection: Selection,
    offsets: Offsets | None = None,
    shared: Mlp | None = None,
) -> Experts:
    """Experts of `inner` outputs of gate and up; some checkpoints have `other` names."""
    hidden, count = c.integer("hidden_size"), num_experts(c)
    c.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
    if selection.top > count or count % selection.groups:
        raise ModelError(
            f"config.json: {selection.top} experts cannot be chosen of {count} in groups of {selection.groups}."
        )
    gate_up, down = _stacks(names, count, hidden, inner)
    if other is not None:
        gate_up, down = (
            replace(one, other=two)
            for one, two in zip((gate_up, down), _stacks(other, count, hidden, inner), strict=True)
        )
    return Experts(
        router=Linear(hidden, (Part(f"{names.at}.{names.router}", count),), None),
        selection=selection,
        gate_up=gate_up,
        down=down,
        activation=c.choice("hidden_act", ACTIVATIONS, "silu"),
        offsets=offsets,
        shared=shared,
    )


def _stacks(names: Names, count: int, hidden: int, inner: int) -> tuple[Stack, Stack]:
    """Gate and up, and down."""
    gate_up = tuple(Part(f"{names.at}.{name}", inner) for name in (names.gate, names.up))
    down = (Part(f"{names.at}.{names.down}", hidden),)
    return (
        Stack(count, Linear(hidden, gate_up, "out", transposed=names.transposed), names.bare),
        Stack(count, Linear(inner, down, "in", transposed=names.transposed), names.bare),
    )


def grouped(c: HfConfig) -> Selection:
    """By a sigmoid and with offsets, in the best of some groups."""
    return Selection(
        c.integer("num_experts_per_tok"),
        "sigmoid",
        renormalised=c.boolean("norm_topk_prob", True),
        scale=c.number("routed_scaling_factor", 1.0),
        groups=c.integer("n_group", 1),
        top_groups=c.integer("topk_group", 1),
    )


def shared_mlp(
    c: HfConfig,
    name: str,
    inner: int,
    names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    *,
    bias: bool = False,
) -> Mlp:
    """An expert that all tokens see. Gate and up may have one name."""
    hidden = c.integer("hidden_size")
    gate, up, down = (f"{name}.{one}" for one in names)
    return Mlp(
        gate_up=Linear(hidden, (Part(gate, inner), Part(up, inner)), "out", bias=bias),
        down=Linear(inner, (Part(down, hidden),), "in", bias=bias),
        activation=c.choice("hidden_act", ACTIVATIONS, "silu"),
    )


def shared_experts(c: HfConfig, inner: int) -> Mlp | None:
    """As many as the config says, as one."""
    number = c.count("n_shared_experts", 0)
    return shared_mlp(c, "mlp.shared_experts", inner * number) if number else None


def behind_dense(c: HfConfig) -> tuple[bool, ...]:
    """Which layers have experts: those of which it is said, or every so many-th behind the first ones."""
    number, dense, step = (
        c.integer("num_hidden_layers"),
        c.count("first_k_dense_replace", 0),
        c.integer("moe_layer_freq", 1),
    )
    if not c.has("mlp_layer_types"):
        return tuple(i >= dense and not i % step for i in range(number))
    words = c.strings("mlp_layer_types")
    if len(words) != number or not {*words} <= {"dense", "sparse"}:
        raise ModelError(
            f"config.json: mlp_layer_types must be num_hidden_layers ({number}) words of dense, sparse, got {list(words)}."
        )
    return tuple(word == "sparse" for word in words)


def first_dense(c: HfConfig, attention: Attention, ffn: Experts) -> Decoder:
    """The first layers have no experts."""
    dense = c.count("first_k_dense_replace", 0)
    sparse, plain = block(c, attention, ffn), block(c, attention, mlp(c))
    return with_next(c, decoder(c, [plain if i < dense else sparse for i in range(c.integer("num_hidden_layers"))]))


def with_next(c: HfConfig, made: Decoder) -> Decoder:
    """Checkpoints have layers like the last one behind it, each of which predicts one more token (DeepSeek-V3, 2024): the first can
    draft, by the model's embedding and head, of which it has copies."""
    layers = range(len(made.blocks), len(made.blocks) + c.count("num_nextn_predict_layers", 0))
    prefixes = tuple(made.block_prefix.format(layer) for layer in layers)
    if not prefixes:
        return made
    first = prefixes[0]
    head = head_beside(
        made,
        made.blocks[-1],
        block_prefix=first,
        join=f"{first}eh_proj",
        norms=(f"{first}enorm", f"{first}hnorm", f"{first}shared_head.norm"),
        within=first,
        aside=(f"{first}embed_tokens.", f"{first}shared_head.head."),
    )
    return replace(made, aside=prefixes, mtp=head)
