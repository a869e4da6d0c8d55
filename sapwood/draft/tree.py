"""The cache's tree as a drafter: a text that goes like another one did will go on like it.

An agent that repeats an answer, a request that is tried again, a file that is written anew: what was said then is still in
the tree, and its tokens are read there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.draft.drafter import Drafter


class Place(Protocol):
    """A place on somebody's path."""

    def follow(self, tokens: Sequence[int]) -> bool:
        """Move on by these tokens; False if the path goes another way, and then this is no place any more."""
        ...

    def ahead(self, count: int) -> list[int]:
        """Up to `count` tokens that come next on the path."""
        ...


Find = Callable[[Request, Ints], Place | None]
"""A place where a request's tokens, or the last of them, end on a path that it may see."""


class Tree(Drafter):
    """Follows what `find` finds, and looks again where that goes another way or ends."""

    name = "tree"

    def __init__(self, find: Find) -> None:
        self._find = find
        self._places: dict[int, tuple[Place, int]] = {}  # by request, with how many tokens led there

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int] | Ints:
        place, seen = self._places.pop(request.id, (None, 0))
        if place is None or not place.follow(tokens[seen:].tolist()) or not (said := place.ahead(count)):
            place = self._find(request, tokens)
            said = [] if place is None else place.ahead(count)
        if place is not None and said:
            self._places[request.id] = place, len(tokens)
        return said

    def leave(self, request: Request) -> None:
        self._places.pop(request.id, None)
