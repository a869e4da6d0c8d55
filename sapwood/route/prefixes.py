"""Which server has seen the beginning of a prompt: what its prefix cache likely holds, as far as one can know from outside.

A prompt is a chain of blocks, each with a number for itself and all before it (`Ask.blocks`); for each number are kept the
servers that were sent it. So this is the tree of all prompts, without its edges. Servers forget what they have not used for
long, and so does this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

MOST_BLOCKS = 500_000


class Prefixes:
    """Keeps the last `most` blocks, and when each server was sent them last."""

    def __init__(self, most: int = MOST_BLOCKS, clock: Callable[[], float] = monotonic) -> None:
        self._most, self._clock = most, clock
        self._servers: OrderedDict[int, dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._servers)

    def held(self, blocks: Sequence[int], servers: Iterable[str], lately: float | None = None) -> dict[str, int]:
        """How many of the first blocks each of the servers has been sent, within the last seconds if that is asked."""
        found = dict.fromkeys(servers, 0)
        left, since = set(found), None if lately is None else self._clock() - lately
        for depth, block in enumerate(blocks, 1):
            sent = self._servers.get(block, {})
            left = {one for one in left if one in sent and (since is None or sent[one] >= since)}
            if not left:
                break
            found.update(dict.fromkeys(left, depth))
        return found

    def note(self, blocks: Sequence[int], server: str) -> None:
        """The server has been sent these."""
        now = self._clock()
        for block in reversed(blocks):  # so that the beginning is forgotten last
            if block in self._servers:
                self._servers.move_to_end(block)
                self._servers[block][server] = now
            else:
                self._servers[block] = {server: now}
        while len(self._servers) > self._most:
            self._servers.popitem(last=False)

    def forget(self, server: str) -> None:
        """The server has lost its cache, or has gone."""
        for block in [block for block, servers in self._servers.items() if server in servers]:
            del self._servers[block][server]
            if not self._servers[block]:
                del self._servers[block]
