"""What proposes tokens before they are drawn: the protocol of drafters. `stake.DraftStake` asks them."""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.base.plan import Ints
from sapwood.base.request import Request


class Drafter:
    """Proposes what may follow in a request's text: this one nothing. A draft that is wrong costs time and nothing else.

    `name` is what figures call it.
    """

    name = "drafter"

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int] | Ints:
        """Up to `count` tokens that may follow the request's `tokens`, all that are known; none if it has no idea.

        `tokens` only grow from one call to the next, but calls may be left out.
        """
        return ()

    def leave(self, request: Request) -> None:
        """The request gives up its slot, for a while or for good: what is remembered of it can go."""


class OnDevice(Drafter):
    """A model beside the other one: it is told whom to draft for, and always has an idea."""

    def __init__(self, name: str = "draft") -> None:
        self.name = name
