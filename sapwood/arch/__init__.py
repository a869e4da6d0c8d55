"""A model as data: a tree of parts, and the functions on it. No torch here."""

from __future__ import annotations

from sapwood.arch.families import declare
from sapwood.arch.parts import Decoder

__all__ = ["Decoder", "declare"]
