"""Why a prompt was found in the cache, or was not: what the header x-sapwood-explain-cache asks for."""

from __future__ import annotations

import json
from typing import Any

from sapwood.server.front import Front
from sapwood.server.keys import OPERATOR, Tenant

ASKED, ANSWER = "x-sapwood-explain-cache", b"x-sapwood-cache"

_AROUND = 12  # tokens that are shown as text on either side


async def explained(front: Front, tokens: list[int], salt: str, tenant: Tenant, *, adapter: str) -> bytes:
    """A header's value, JSON in ASCII: `prompt_tokens`, `cached_tokens` (those that lie there now, by whole pages), `differs_at` (the first
    token that the cache does not have behind those before it), and as text what is `before` it, what is `here`, and what the
    cache has `instead`, null where nothing follows there, or where it could be another key's.
    """
    found = await front.engine.control("explain", {"tokens": tokens, "salt": tenant.salted(salt), "adapter": adapter})
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
