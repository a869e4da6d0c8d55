"""How many tokens a text has, nearly, without a tokenizer."""

from __future__ import annotations

import math

_BYTES_PER_TOKEN = 3.5
"""English and code have about 4 in vocabularies of today, Chinese and Japanese 3, numbers and rare words fewer: rather too many tokens
than too few."""


def estimated(text: str | bytes) -> int:
    """Tokens, from the bytes of UTF-8 alone: whoever has counted a text once counts the same again."""
    size = len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return math.ceil(size / _BYTES_PER_TOKEN)
