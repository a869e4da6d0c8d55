"""Between what people write and what models read: tokenizer, chat template, incremental text, stop strings."""

from sapwood.text.model import Piece, TextModel, TextStream

__all__ = ["Piece", "TextModel", "TextStream"]
