"""What one running sequence has of the KV cache."""

from __future__ import annotations

from sapwood.cache.tree import Node


class Hold:
    """A leased path in the tree, private pages behind it, and where its windows begin.

    Attributes:
        root, nodes: The path. The sequence is counted in `users` of every node on it.
        own: Per private page behind the path: its number in each group.
        low: Per windowed group: first page of the path that is held.
        asked: How many pages the tokens fill that were known when it began.
        shared: How many nodes of the path others used too when the shared runs were last looked for.
    """

    __slots__ = ("asked", "low", "nodes", "own", "root", "shared")

    def __init__(self, root: Node, nodes: list[Node], num_groups: int, asked: int) -> None:
        self.root = root
        self.nodes = nodes
        self.own: list[list[int]] = []
        self.low = [0] * num_groups
        self.asked = asked
        self.shared = 0

    @property
    def deepest(self) -> Node:
        return self.nodes[-1] if self.nodes else self.root

    @property
    def num_pages(self) -> int:
        return len(self.nodes) + len(self.own)
