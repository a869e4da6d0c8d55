"""What there is beside mixers and feed-forwards: vectors of a token for each layer, and a factor of each layer."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.arch.parts import Activation, Axis, Embedding, Leaf, Linear, Norm, StoredTensor


@dataclass(frozen=True)
class Factor(Leaf):
    """One learned number, or one of each of so many dimensions."""

    name: str
    size: int = 1

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", self.name, (Axis(self.size),)),)


@dataclass(frozen=True)
class Beside:
    """x += norm(out(activation(gate(x)) * v)), where v is the token's vector for this layer (`Vectors`)."""

    gate: Linear
    out: Linear
    norm: Norm
    activation: Activation


@dataclass(frozen=True)
class Vectors:
    """(embed + norm(scale * project(x))) / sqrt(2): a token's vectors for all layers side by side, from its id and from its
    embedding x, each layer's normed by itself. Tokens beyond the `embed`'s have that of the first."""

    embed: Embedding
    project: Linear
    norm: Norm
    scale: float
