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


def middle_out(text: str, tokens: int) -> str:
    """At most about so many tokens of a text, half of them from its beginning and half from its end, and what is missing between."""
    if (size := estimated(text)) <= tokens:
        return text
    half = int(max(tokens, 0) * _BYTES_PER_TOKEN / 2)
    raw = text.encode("utf-8", "surrogatepass")
    first = raw[:half].decode("utf-8", "ignore")
    last = raw[len(raw) - half :].decode("utf-8", "ignore")
    missing = size - 2 * int(half / _BYTES_PER_TOKEN)
    return (
        f"{first}\n[... about {missing} tokens were left out ...]\n{last}"
        if half
        else f"[about {size} tokens were left out]"
    )
