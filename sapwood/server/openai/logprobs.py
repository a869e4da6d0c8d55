"""Logprobs of a chat's or a response's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sapwood.base.plan import TokenLogprobs
from sapwood.server.logprobs import alternatives, finite
from sapwood.text import TextModel


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


def token_logprobs(text: TextModel, entries: Sequence[TokenLogprobs], named: Sequence[int]) -> list[TokenLogprob]:
    """Each token with its alternatives, and with those that the request names."""

    def told(id: int, logprob: float) -> TopLogprob:
        return TopLogprob(text.token_text(id), finite(logprob), list(text.token_bytes(id)))

    content = []
    for entry in entries:
        top = [told(id, value) for id, value in alternatives(entry, named)]
        chosen = told(entry.token, entry.logprob)
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return content
