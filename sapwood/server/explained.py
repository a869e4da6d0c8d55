"""Why a prompt was found in the cache, or was not: what the header x-sapwood-explain-cache asks for."""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np

from sapwood.base.media import Media, Span, keyed, seen_by_all
from sapwood.engine.checks import input_of
from sapwood.server.front import Front
from sapwood.server.keys import OPERATOR, Tenant

ASKED, ANSWER = "x-sapwood-explain-cache", b"x-sapwood-cache"

_AROUND = 12  # tokens that are shown as text on either side


class Explainable(Protocol):
    """A prompt."""

    @property
    def salt(self) -> str: ...

    @property
    def spans(self) -> tuple[Span, ...]: ...

    def given(self) -> tuple[list[int], tuple[Media, ...]]: ...


async def explained(front: Front, prompt: Explainable, tenant: Tenant, *, adapter: str) -> bytes:
    """A header's value, JSON in ASCII: `prompt_tokens`, `cached_tokens` (those that lie there now, by whole pages), `differs_at` (the first
    token that the cache does not have behind those before it), and as text what is `before` it, what is `here`, and what the
    cache has `instead`, null where nothing follows there, or where it could be another key's. Of an encoder-decoder all that is of what
    the decoder begins with.
    """
    tokens, media = prompt.given()
    reading = front.facts.reading
    if reading is not None and reading.kind == "tokens" and not media:
        tokens, media = reading.starts, (input_of(tokens),)
    keys = keyed(np.array(tokens, np.int32), media, prompt.spans).tolist() if prompt.spans else tokens
    about = {"tokens": keys, "salt": tenant.salted(prompt.salt), "adapter": adapter}
    found = await front.engine.control("explain", about | {"seen": seen_by_all(media, prompt.spans)})
    at: int = found["differs"]
    texts = [tokens[max(0, at - _AROUND) : at], tokens[at : at + _AROUND], found["instead"][:_AROUND]]
    before, here, instead = await front.decode_all(texts, skip_special=False)
    private = not front.guard.keyed or not tenant.shares or tenant is OPERATOR
    told: dict[str, Any] = {
        "prompt_tokens": len(tokens),
        "cached_tokens": found["cached"],
        "differs_at": at,
        "before": before,
        "here": here,
        "instead": instead if found["instead"] and private else None,
    }
    return json.dumps(told).encode("ascii")
