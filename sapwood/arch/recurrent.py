"""Mixers that carry a state from token to token, and their leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from sapwood.arch.multiplied import Multiplied
from sapwood.arch.parts import Axis, Leaf, Linear, Mixer, Norm, Part, StoredTensor, kinds_of
from sapwood.arch.share import Share
from sapwood.base.kv import KVKind, State


@dataclass(frozen=True)
class Conv(Leaf):
    """A causal convolution of each channel by itself over the last `width` tokens.

    `runs` are consecutive runs of channels, which ranks share as they do the rows of a Linear's parts. If it is `flat`, as in GGUF files, the
    checkpoint's weights have no axis of size one.
    """

    name: str
    runs: tuple[Part, ...]
    width: int
    bias: bool = False
    flat: bool = False

    @property
    def spellings(self) -> tuple[Leaf, ...]:
        return (self, replace(self, flat=True))

    @property
    def channels(self) -> int:
        return sum(run.size for run in self.runs)

    @property
    def state(self) -> tuple[int, int]:
        """What is kept: the channels' inputs of the last tokens, oldest first."""
        return self.channels, self.width - 1

    def tensors(self) -> tuple[StoredTensor, ...]:
        found, first = [], 0
        for run in self.runs:
            rows = Axis(run.size, run.unit, first=first, whole=self.channels, joined=True)
            first += run.size
            taps = (Axis(self.width),) if self.flat else (Axis(1), Axis(self.width))
            found.append(StoredTensor("weight", f"{self.name}.weight", (rows, *taps)))
            if self.bias:
                found.append(StoredTensor("bias", f"{self.name}.bias", (rows,)))
        return tuple(found)

    def shared(self, share: Share) -> Self:
        runs = (replace(run, size=len(range(run.size)[share.run(run.size, run.unit)])) for run in self.runs)
        return replace(self, runs=tuple(runs))


@dataclass(frozen=True)
class PerHead(Leaf):
    """A number for each head, or `each` of them, in float32."""

    name: str
    count: int
    each: int | None = None

    def tensors(self) -> tuple[StoredTensor, ...]:
        axes = (Axis(self.count, 1),) if self.each is None else (Axis(self.count, 1), Axis(self.each))
        return (StoredTensor("weight", self.name, axes),)

    def shared(self, share: Share) -> Self:
        return replace(self, count=share.count(self.count))


@dataclass(frozen=True)
class ShortConv:
    """out(C * conv(B * x)), where `inp` yields B, C and x (LFM2's)."""

    inp: Linear
    conv: Conv
    out: Linear

    @property
    def kv(self) -> State:
        return State((self.conv.state,))


@dataclass(frozen=True)
class Mamba1:
    """Mamba (Gu and Dao, 2023). `inp` yields x and a gate z; x goes through `conv` and SiLU, and `select` makes of it a time step
    of few numbers, B and C, each normed if there is a norm. With h' = exp(-exp(a_log) dt) h + dt B x and y = C h' + d x, where
    dt = softplus(step), it is out(y silu(z)). Each channel has a state of `state_size`, every number of which decays by itself.
    """

    channels: int
    state_size: int
    inp: Linear
    conv: Conv
    select: Linear
    step: Linear
    a_log: PerHead
    d: PerHead
    out: Linear
    step_norm: Norm | None = None
    b_norm: Norm | None = None
    c_norm: Norm | None = None

    indivisible: ClassVar[bool] = True  # what is selected is of all channels

    @property
    def kv(self) -> State:
        return State((self.conv.state, (self.channels, self.state_size, 1)))


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2 (Dao and Gu, 2024). `inp` yields the gate z, x, B, C and a time step for each head; x, B and C go through
    `conv` and SiLU. With h' = exp(-exp(a_log) dt) h + dt B x and y = C h' + d x, where dt = softplus(step + dt_bias) within
    `limits`, it is out(norm(y silu(z))), each of `num_groups` normed by itself, or if `gated_last` out(norm(y) silu(z)).

    `num_heads` heads of `head_dim` share B and C, of `state_size`, in `num_groups`.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    inp: Linear | Multiplied
    conv: Conv
    dt_bias: PerHead
    a_log: PerHead
    d: PerHead
    norm: Norm | None
    out: Linear
    limits: tuple[float, float] = (0.0, float("inf"))
    gated_last: bool = False

    counted: ClassVar[tuple[str, ...]] = ("num_heads", "num_groups")

    @property
    def kv(self) -> State:
        return State((self.conv.state, (self.num_heads, self.state_size, self.head_dim)))


@dataclass(frozen=True)
class DeltaNet:
    """A gated delta net (Yang et al., 2024). `inp` yields queries and keys, values, a gate z, and two numbers for each head, b
    and a; queries, keys and values go through `conv` and SiLU, and queries and keys have length 1. What a state has under a
    key is replaced by the value as far as sigmoid(b) says, while all of it decays by exp(-exp(a_log) softplus(a + dt_bias)).
    It is out(norm(y) silu(z)), each head normed by itself.

    `num_heads` heads with values of `head_dim` share queries and keys, of `state_size`, in `num_groups`.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    inp: Linear
    conv: Conv
    dt_bias: PerHead
    a_log: PerHead
    norm: Norm
    out: Linear

    counted: ClassVar[tuple[str, ...]] = ("num_heads", "num_groups")

    @property
    def kv(self) -> State:
        return State((self.conv.state, (self.num_heads, self.state_size, self.head_dim)))


@dataclass(frozen=True)
class Together:
    """The sum of what two mixers make of the same tokens, each times its scale. What they keep is of two kinds."""

    first: Mixer
    second: Mixer
    scales: tuple[float, float]

    @property
    def kv(self) -> tuple[KVKind, ...]:
        return (*kinds_of(self.first), *kinds_of(self.second))


@dataclass(frozen=True)
class Skip:
    """In the place of a mixer or a feed-forward: nothing happens, and nothing is kept."""

    @property
    def kv(self) -> None:
        return None
