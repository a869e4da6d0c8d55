"""What a model has that makes vectors of media: the part that all encoders have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sapwood.base.media import Kind

if TYPE_CHECKING:
    from sapwood.arch.foreign import Foreign
    from sapwood.arch.parts import Decoder


@dataclass(frozen=True)
class Encoder:
    """Takes media of these `kinds`; a kind of encoder is a part that adds what it is made of."""

    kinds: ClassVar[tuple[Kind, ...]] = ()


def media_of(decoder: Decoder | Foreign) -> tuple[Kind, ...]:
    """The kinds of media that a model takes."""
    return () if decoder.encoder is None else decoder.encoder.kinds
