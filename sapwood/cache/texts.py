"""Texts whose tokens see each other are computed in one step."""

from __future__ import annotations

from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.cache.kv import KVCache


class Texts(Stake):
    """Clamps the chunks of a cache of which some groups do not last: a text comes whole, or waits for a step with room for it."""

    def __init__(self, kv: KVCache, slots: Slots) -> None:
        self._whole = not all(group.lasts for group in kv.groups)
        self._slots = slots

    def concerns(self, request: Request) -> bool:
        return self._whole

    def clamp(self, request: Request, start: int, count: int) -> int:
        return count if start + count == self._slots.known[request.slot] else 0
