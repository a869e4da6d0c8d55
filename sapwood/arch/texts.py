"""What models have that read texts and write none: heads for scores, and the tasks that follow from their heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sapwood.arch.parts import Decoder, Linear, Norm
from sapwood.arch.reader import Reader
from sapwood.base.task import Align, Embed, Generate, Pooling, Score, Task

if TYPE_CHECKING:
    from sapwood.arch.foreign import Foreign


@dataclass(frozen=True)
class Dense:
    """norm(activation(linear(x)))."""

    linear: Linear
    activation: Literal["tanh", "relu", "gelu"]
    norm: Norm | None = None


@dataclass(frozen=True)
class Classifier:
    """A number for each label from a text's vector, which `pooling` makes of its states: out(inner(x))."""

    pooling: Pooling
    inner: Dense | None
    out: Linear


def tasks_of(decoder: Decoder | Foreign) -> tuple[type[Task], ...]:
    """What a model can do. All have states, so that all embed, but for those that write of what an encoder has read."""
    if isinstance(decoder.encoder, Reader):
        return (Generate,) if decoder.encoder.stem is None else (Generate, Align)
    generates = (Generate,) if decoder.writes else ()
    return (*generates, Embed, *(() if decoder.classifier is None else (Score,)))
