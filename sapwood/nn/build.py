"""From a tree of parts to a tree of modules of the same shape: module `blocks.0.ffn` is made from the part there."""

from __future__ import annotations

from sapwood.arch.parts import Decoder
from sapwood.nn.make import Build
from sapwood.nn.model import Model

__all__ = ["Build", "build"]


def build(decoder: Decoder, how: Build) -> Model:
    """The model with its memory taken once, on the device, and not yet filled."""
    return Model(decoder, how)
