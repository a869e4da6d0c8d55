"""Between what people write and what models read: tokenizer, chat template, incremental text, stop strings."""

from sapwood.text.assembler import Assembler, Piece
from sapwood.text.model import TextModel

__all__ = ["Assembler", "Piece", "TextModel"]
