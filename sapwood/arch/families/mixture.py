"""What families of experts share: how configs state them, and how checkpoints name them."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.arch.experts import Experts, Stack
from sapwood.arch.families.common import ACTIVATIONS
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Linear, Mlp, Part
from sapwood.base.errors import ModelError
from sapwood.base.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Names:
    """Of the tensors of a feed-forward, under `at`: those of gate, up and down of each expert, by a {}, or of all."""

    at: str = "mlp"
    router: str = "gate"
    gate: str = "experts.{}.gate_proj"
    up: str = "experts.{}.up_proj"
    down: str = "experts.{}.down_proj"


PLAIN = Names()


def experts(
    c: HfConfig, names: Names = PLAIN, *, inner: int, selection: Selection, shared: Mlp | None = None
) -> Experts:
    """Experts of `inner` outputs of gate and up, as many as the config says in either of two fields."""
    hidden = c.integer("hidden_size")
    count = c.integer("num_experts" if c.has("num_experts") else "num_local_experts")
    c.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
    if selection.top > count or count % selection.groups:
        raise ModelError(
            f"config.json: {selection.top} experts cannot be chosen of {count} in groups of {selection.groups}."
        )
    gate_up = tuple(Part(f"{names.at}.{name}", inner) for name in (names.gate, names.up))
    return Experts(
        router=Linear(hidden, (Part(f"{names.at}.{names.router}", count),), None),
        selection=selection,
        gate_up=Stack(count, Linear(hidden, gate_up, None)),
        down=Stack(count, Linear(inner, (Part(f"{names.at}.{names.down}", hidden),), None)),
        activation=c.choice("hidden_act", ACTIVATIONS, "silu"),
        shared=shared,
    )


def shared_mlp(c: HfConfig, name: str, inner: int) -> Mlp:
    """An expert that all tokens see."""
    hidden = c.integer("hidden_size")
    return Mlp(
        gate_up=Linear(hidden, (Part(f"{name}.gate_proj", inner), Part(f"{name}.up_proj", inner)), "out"),
        down=Linear(inner, (Part(f"{name}.down_proj", hidden),), "in"),
        activation=c.choice("hidden_act", ACTIVATIONS, "silu"),
    )
