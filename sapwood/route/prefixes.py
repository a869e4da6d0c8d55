"""Which server has seen the beginning of a prompt: what its prefix cache likely holds, as far as one can know from outside.

A prompt is a chain of blocks, each with a number for itself and all before it (`Ask.blocks`); for each number are kept the
servers that were sent it. So this is the tree of all prompts, without its edges. Servers forget what they have not used for
long, and so does this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

MOST_BLOCKS = 500_000


class Prefixes:
    """Keeps the last `most` blocks."""

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._most = most
        self._servers: OrderedDict[int, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._servers)

    def held(self, blocks: Sequence[int], servers: Iterable[str]) -> dict[str, int]:
        """How many of the first blocks each of the servers has been sent."""
        found = dict.fromkeys(servers, 0)
        left = set(found)
        for depth, block in enumerate(blocks, 1):
            left &= self._servers.get(block, set())
            if not left:
                break
            found.update(dict.fromkeys(left, depth))
        return found

    def note(self, blocks: Sequence[int], server: str) -> None:
        """The server has been sent these."""
        for block in reversed(blocks):  # so that the beginning is forgotten last
            if block in self._servers:
                self._servers.move_to_end(block)
                self._servers[block].add(server)
            else:
                self._servers[block] = {server}
        while len(self._servers) > self._most:
            self._servers.popitem(last=False)

    def forget(self, server: str) -> None:
        """The server has lost its cache, or has gone."""
        for block in [block for block, servers in self._servers.items() if server in servers]:
            self._servers[block].discard(server)
            if not self._servers[block]:
                del self._servers[block]
