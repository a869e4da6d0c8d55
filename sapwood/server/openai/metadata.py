"""What clients may write on the objects that they leave here."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
"""At most 16 pairs of names and texts, as OpenAI bounds them."""
