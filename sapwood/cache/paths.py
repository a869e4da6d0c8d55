"""Places on the tree's paths where a text ends, so that what came next there may come next here.

A place is found in two ways: the whole text is on a path that goes on, as that of an answer which is given again; or its
last tokens are those that some page of its namespace begins with. Pages of a text that was shifted begin elsewhere, so
such a place is found within a page's length. Nothing is leased: what is read is tokens, which a page that was evicted
has no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.cache.hold import Hold
from sapwood.cache.tree import Node, RadixTree

_CANDIDATES = 8  # children that are looked at, newest first


class Place:
    """Behind `offset` tokens of a node."""

    __slots__ = ("_node", "_offset")

    def __init__(self, node: Node, offset: int) -> None:
        self._node, self._offset = node, offset

    def follow(self, tokens: Sequence[int]) -> bool:
        """Move on by these tokens; False if no path goes there."""
        for token in tokens:
            node = self._node
            if self._offset < len(node.key) // 4:
                if _token(node, self._offset) != token:
                    return False
                self._offset += 1
            elif (child := _child(node, token.to_bytes(4, "little"))) is not None:
                self._node, self._offset = child, 1
            else:
                return False
        return True

    def ahead(self, count: int) -> list[int]:
        """Up to `count` tokens that come next; where paths part, of the newest."""
        node, offset, found = self._node, self._offset, list[int]()
        while len(found) < count:
            found += memoryview(node.key).cast("i")[offset : offset + count - len(found)].tolist()
            if not node.children:
                break
            node, offset = next(reversed(node.children.values())), 0
        return found


class Paths:
    """The paths of a tree, which keeps anchors."""

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree

    def find(self, request: Request, tokens: Ints) -> Place | None:
        """Where the tokens of a running request end on a path of its namespace that goes on."""
        hold: Hold = request.hold
        rest = tokens[len(hold.nodes) * self._tree.page_size :].tobytes()
        return self._descend(hold.deepest, rest) or self._anchored(hold.root, tokens[-self._tree.anchor :].tobytes())

    def _descend(self, node: Node, rest: bytes) -> Place | None:
        size = self._tree.page_bytes
        while len(rest) >= size:
            child = node.children.get(rest[:size])
            if child is None:
                return None
            node, rest = child, rest[size:]
        if (child := _child(node, rest)) is None:
            return None
        return Place(child, len(rest) // 4)

    def _anchored(self, root: Node, tail: bytes) -> Place | None:
        node = self._tree.anchored(root, tail)
        return None if node is None else Place(node, self._tree.anchor)


def _token(node: Node, offset: int) -> int:
    return int.from_bytes(node.key[4 * offset : 4 * offset + 4], "little")


def _child(node: Node, begin: bytes) -> Node | None:
    """The newest child that begins so and goes on."""
    for child in islice(reversed(node.children.values()), _CANDIDATES):
        if len(child.key) > len(begin) and child.key.startswith(begin):
            return child
    return None
