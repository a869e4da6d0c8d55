"""Who has a say in a request before a server is chosen for it, and hears how it was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from sapwood.route.ask import Ask


@dataclass
class Passing:
    """A request on its way through the router.

    Attributes:
        ask: What is sent on; a guest may put another in its place.
        headers: What came with it.
        tenant: Whose it is: the name of its key.
        models: Names that are tried in this order in place of the one that the request has, where a guest says so.
        told: Headers that the client gets beside those of the answer.
        notes: What a guest wants to remember until the answer, by the guest's name.
        spent: Tokens that guests had models read and write for it, which count on the tenant's limits too.
        copied: Bytes of a stream of which a guest wants a copy; a longer one is not copied.
    """

    ask: Ask
    headers: Mapping[str, str]
    tenant: str
    models: tuple[str, ...] | None = None
    told: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    copied: int = 0
    spent: int = 0


class Answered(NamedTuple):
    """How a server answered.

    Attributes:
        model: Whom it was asked for, if anybody.
        first: Seconds until it began to answer, `seconds` until it had ended.
        body: All of an answer that came whole, and of a stream of which a guest wanted a copy; else None.
    """

    model: str | None
    status: int
    content_type: str
    first: float
    seconds: float
    body: bytes | None


class Copy:
    """The pieces of a stream, up to `most` bytes."""

    def __init__(self, most: int) -> None:
        self._left, self._pieces = most, list[bytes]()

    def add(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left >= 0:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    @property
    def body(self) -> bytes | None:
        """All of it; None of a stream that was too long, or empty."""
        return b"".join(self._pieces) if self._left >= 0 and self._pieces else None


class Guest(Protocol):
    """Raises RequestError for a request that is to be refused."""

    async def arrives(self, passing: Passing) -> web.Response | None:
        """The answer, if no server has to be asked."""

    async def leaves(self, passing: Passing, ask: Ask, model: str | None) -> Ask:
        """What is sent to a server that is asked for that model, one of those that may answer; asked before each attempt."""
        return ask

    def answered(self, passing: Passing, how: Answered) -> None:
        """A server has answered."""
        return


Guests = Sequence[Guest]
