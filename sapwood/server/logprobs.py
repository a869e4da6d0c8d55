"""Logprobs as every dialect tells them."""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.base.plan import TokenLogprobs

_LEAST = -9999.0  # JSON has no -inf


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def alternatives(entry: TokenLogprobs, named: Sequence[int]) -> list[tuple[int, float]]:
    """The likeliest tokens, then those that the request names and that are not among them, each once."""
    named_ones = zip(named, entry.named_logprobs, strict=True)
    return list((dict(zip(entry.top_ids, entry.top_logprobs, strict=True)) | dict(named_ones)).items())
