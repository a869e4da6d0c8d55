"""Where chunks end, so that states of recurrences are left where others can go on from.

What is not divisible is kept as it is behind a step's last position, and only what is kept at the end of a page is of use to others.
Keeping it at every border would cost the memory of a state for each, and a step; it is kept where somebody will begin:

    where a chunk ends that the budget cuts    moved back to a border, at no cost
    behind the last page of what is known      for the next turn of a conversation, another try, a request that gave way
    where the tree's path and ours part        the third request with a beginning finds it, although nobody has ended there
    in a running answer                        at each border, as it is passed; first to be evicted
"""

from __future__ import annotations

from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.cache.kv import KVCache


class Borders(Stake):
    """Clamps the chunks of a cache of which some groups are not divisible; asked behind the cache itself.

    Its requests wait for a step where another one's chunk is about to leave what they can begin with.
    """

    def __init__(self, kv: KVCache, slots: Slots) -> None:
        self._kv, self._slots = kv, slots

    def concerns(self, request: Request) -> bool:
        return bool(self._kv.tree.whole)

    def clamp(self, request: Request, start: int, count: int) -> int:
        s, size, slot = self._slots, self._kv.page_size, request.slot
        if s.slack[slot]:
            return min(count, 1)  # nobody knows yet where it really starts
        if within := start % size:
            return min(count, size - within)
        if count == 1:
            return count
        known = int(s.known[slot])
        parting, waits = self._kv.ahead(request, start, s.history[slot, :known].tobytes())
        if waits:
            return 0
        end = start + count
        if end < known:
            end = max(end // size * size, min(end, start + size))
        ends = (end, parting, (known - 1) // size * size)
        return min(border for border in ends if border > start) - start
