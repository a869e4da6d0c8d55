"""Token ids: which there are."""

from __future__ import annotations

from collections.abc import Collection

from sapwood.base.errors import RequestError


def check_ids(ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raise RequestError, naming `param`, unless all of them are in the vocabulary."""
    lowest, highest = min(ids, default=0), max(ids, default=0)
    worst = lowest if lowest < 0 else highest
    if not 0 <= worst < vocab_size:
        raise RequestError(f"{param}: token id {worst} is outside the vocabulary [0, {vocab_size}).", param=param)
