"""What an engine answers to those that want its pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sapwood.stores.handoff.book import Book
from sapwood.stores.handoff.listener import Answer, Visit
from sapwood.stores.handoff.sockets import SocketTransfer
from sapwood.stores.handoff.transfer import Transfer
from sapwood.stores.handoff.wire import (
    VERSION,
    Find,
    Found,
    Held,
    Hello,
    Hold,
    LetGo,
    Line,
    Read,
    Refused,
    Welcome,
)


class Origin(NamedTuple):
    """All that pages depend on besides their tokens, as a digest; and what of it can be told in words."""

    digest: bytes
    facts: Mapping[str, str]

    def hello(self) -> Hello:
        return Hello(VERSION, self.digest, dict(self.facts))

    def refusal(self, hello: Hello) -> str | None:
        """Why that engine's pages are not those of this one, in words for that one; None if they are."""
        if hello.version != VERSION:
            return f"protocol: {VERSION} there, {hello.version} here"
        if hello.origin == self.digest:
            return None
        differing = [
            f"{name}: {self.facts.get(name, 'nothing')} there, {hello.facts.get(name, 'nothing')} here"
            for name in sorted(self.facts.keys() | hello.facts.keys())
            if self.facts.get(name) != hello.facts.get(name)
        ]
        return "; ".join(differing) or "their options differ"


class Desk(Visit):
    """Answers one peer from the engine's book."""

    def __init__(self, origin: Origin, engine_id: str, book: Book, transfers: Sequence[Transfer]) -> None:
        self._origin, self._engine_id, self._book = origin, engine_id, book
        self._transfers = transfers
        self._asked: set[str] = set()
        answers: dict[type, Answer] = {Find: self._find, Hold: self._hold, LetGo: self._let_go}
        for one in transfers:
            if isinstance(one, SocketTransfer):
                answers[Read] = one.answer
        self.answers = answers

    def greeted(self, line: Line, hello: Hello) -> bool:
        why = self._origin.refusal(hello)
        if why is None:
            line.send(Welcome(self._engine_id, {one.name: one.metadata() for one in self._transfers}))
        else:
            line.send(Refused(why))
        return why is None

    def over(self) -> None:
        for ticket in self._asked:
            self._book.let_go(ticket, taken=False)

    def _find(self, line: Line, message: Find) -> None:
        blocks, state = self._book.find(message.ticket, message.keys)
        if state != "unknown":
            self._asked.add(message.ticket)
        line.send(Found(blocks, state))

    def _hold(self, line: Line, message: Hold) -> None:
        line.send(Held(self._book.hold(message.ticket)))

    def _let_go(self, line: Line, message: LetGo) -> None:
        self._asked.discard(message.ticket)
        self._book.let_go(message.ticket, taken=True)


def desks(origin: Origin, engine_id: str, book: Book, transfers: Sequence[Transfer]) -> Callable[[], Desk]:
    """One for each peer."""
    return lambda: Desk(origin, engine_id, book, transfers)
