"""Other engines' pages, as a store: what a ticket has is looked up once, and read when it is loaded."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from time import monotonic, perf_counter
from typing import Any, NamedTuple, TypeVar

from sapwood.base.handoff import Fetch
from sapwood.base.pages import Bytes
from sapwood.stores.base import Done, Key
from sapwood.stores.handoff.desk import Origin
from sapwood.stores.handoff.transfer import Reader, Transfer, TransferError
from sapwood.stores.handoff.wire import Find, Found, Held, Hold, LetGo, Line, Message, Refused, Welcome

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 1.0
_SECONDS = 5.0  # that a peer has for an answer, and for each stretch of what it sends
_PAUSE_SECONDS = 2.0  # before one that could not be reached is asked again
_MOST_PEERS = 64  # that are kept; requests say who they are

T = TypeVar("T")


class Ticket(NamedTuple):
    """Of one peer."""

    host: str
    port: int
    name: str

    @classmethod
    def of(cls, fetch: Fetch) -> Ticket:
        return cls(fetch.host, fetch.port, fetch.ticket)


class _Piece(NamedTuple):
    """A page that is to be loaded: its place among those of a job, its block at the peer, and where it goes."""

    place: int
    group: int
    block: int
    into: Bytes


def connected(host: str, port: int, origin: Origin) -> tuple[Line, Welcome]:
    """A connection to a peer that keeps the same pages. Raises TransferError."""
    line = Line.to(host, port, connect=_CONNECT_SECONDS, seconds=_SECONDS)
    try:
        line.send(origin.hello())
        match line.receive():
            case Welcome() as welcome:
                return line, welcome
            case Refused(why):
                raise TransferError(f"{host}:{port} keeps other pages ({why})")
            case _:
                raise TransferError(f"{host}:{port} says something else than was asked")
    except TransferError:
        line.close()
        raise


class _Peer:
    """An engine and the thread that talks with it."""

    def __init__(self, host: str, port: int, origin: Origin, transfers: Sequence[Transfer]) -> None:
        self.host, self.port = host, port
        self._origin, self._transfers = origin, transfers
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="handoff")
        self._line: Line | None = None
        self._reader: Reader | None = None
        self._paused = 0.0
        self._why = ""
        self._last: Future[Any] | None = None
        self.way = ""

    @property
    def idle(self) -> bool:
        """Whether nothing is asked of it now."""
        return self._last is None or self._last.done()

    @property
    def reached(self) -> bool:
        return self._line is not None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        made = self._pool.submit(work)
        self._last = made
        return made

    def find(self, ticket: str, keys: Sequence[Key]) -> Found:
        """Raises TransferError. A connection that has broken since it was used last is made anew."""
        again = self._line is not None
        try:
            found = self._asked(Find(ticket, list(keys)), Found)
        except TransferError:
            if not again:
                raise
            self._paused = 0.0
            found = self._asked(Find(ticket, list(keys)), Found)
        if len(found.blocks) != len(keys):
            raise self._failed(TransferError("the peer tells of other pages than it was asked for"))
        return found

    def load(self, ticket: str, pieces: Sequence[_Piece]) -> None:
        """Raises TransferError."""
        self._connect()
        assert self._reader is not None
        try:
            for group in {piece.group for piece in pieces}:
                mine = [piece for piece in pieces if piece.group == group]
                self._reader.read(group, [piece.block for piece in mine], [piece.into for piece in mine])
        except TransferError as error:
            raise self._failed(error) from error
        if not self._asked(Hold(ticket), Held).good:
            raise TransferError("the pages were given up before they had been read")

    def let_go(self, ticket: str) -> None:
        try:
            if self._line is not None:
                self._line.send(LetGo(ticket))
        except TransferError as error:
            self._failed(error)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._hang_up()

    def _asked(self, message: Message, kind: type[T]) -> T:
        line = self._connect()
        try:
            line.send(message)
            answer = line.receive()
            if not isinstance(answer, kind):
                raise TransferError("the peer says something else than was asked")
        except TransferError as error:
            raise self._failed(error) from error
        return answer

    def _connect(self) -> Line:
        if self._line is not None:
            return self._line
        if monotonic() < self._paused:
            raise TransferError(self._why)
        try:
            return self._greet()
        except TransferError as error:
            raise self._failed(error) from error

    def _greet(self) -> Line:
        self._line, welcome = connected(self.host, self.port, self._origin)
        for way in self._transfers:
            reader = way.add_peer(self.host, self.port, welcome.ways.get(way.name, b""))
            if reader is not None:
                self._reader, self.way = reader, way.name
                return self._line
        raise TransferError(f"{self.host}:{self.port} offers no pages")

    def _failed(self, error: TransferError) -> TransferError:
        """What is left of the connection is closed."""
        log.warning("prompts that %s:%d has read are computed here: %s", self.host, self.port, error)
        self._why, self._paused = str(error), monotonic() + _PAUSE_SECONDS
        self._hang_up()
        return error

    def _hang_up(self) -> None:
        line, reader, self._line, self._reader = self._line, self._reader, None, None
        if line is not None:
            line.close()
        if reader is not None:
            reader.close()


class PeerStore:
    """Keeps the protocol `KVStore` with what peers have said of tickets. `transfers` are ways of reading from them, the fastest first.

    Nothing is ever stored there.
    """

    def __init__(self, origin: Origin, transfers: Sequence[Transfer]) -> None:
        self._origin, self._transfers = origin, tuple(transfers)
        self._peers: dict[tuple[str, int], _Peer] = {}
        self._where: dict[Key, dict[Ticket, int]] = {}
        self._noted: dict[Ticket, set[Key]] = {}
        self._numbers = itertools.count()
        self._over: deque[Done] = deque()
        self._news = Event()
        self._lock = Lock()  # of the figures
        self._bytes = {way.name: 0 for way in transfers}
        self._seconds = {way.name: 0.0 for way in transfers}

    # -- tickets --------------------------------------------------------------------------------------------------

    def find(self, ticket: Ticket, keys: Sequence[Key]) -> Future[Found]:
        """Ask the peer; the answer raises TransferError if there is none."""
        peer = self._peer(ticket)

        def ask() -> Found:
            try:
                return peer.find(ticket.name, keys)
            finally:
                self._news.set()

        return peer.submit(ask)

    def note(self, ticket: Ticket, there: Mapping[Key, int]) -> None:
        """These pages are in those blocks."""
        self._noted.setdefault(ticket, set()).update(there)
        for key, block in there.items():
            self._where.setdefault(key, {})[ticket] = block

    def let_go(self, ticket: Ticket) -> None:
        """Nothing more is wanted of it."""
        for key in self._noted.pop(ticket, ()):
            places = self._where[key]
            del places[ticket]
            if not places:
                del self._where[key]
        peer = self._peer(ticket)
        peer.submit(lambda: peer.let_go(ticket.name))

    # -- a store --------------------------------------------------------------------------------------------------

    def lookup(self, keys: Sequence[Key]) -> list[bool]:
        return [key in self._where for key in keys]

    def seconds(self, keys: Sequence[Key], num_bytes: int) -> float:
        return 0.0  # somebody has been asked to compute them

    def submit_store(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        raise AssertionError("nobody puts pages at a peer's")

    def submit_load(self, keys: Sequence[Key], pages: Sequence[Bytes]) -> int:
        number, good = next(self._numbers), [False] * len(keys)
        parts: dict[Ticket, list[_Piece]] = {}
        for place, (key, page) in enumerate(zip(keys, pages, strict=True)):
            for ticket, block in self._where.get(key, {}).items():
                parts.setdefault(ticket, []).append(_Piece(place, key[-1], block, page))
                break
        left = itertools.count(len(parts), -1)
        self._ended(number, good, left)
        for ticket, pieces in parts.items():
            self._load(ticket, pieces, lambda: self._ended(number, good, left), good)
        return number

    def poll(self) -> list[Done]:
        self._news.clear()
        return [self._over.popleft() for _ in range(len(self._over))]

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)

    def touch(self, keys: Sequence[Key]) -> None: ...

    def delete(self, keys: Sequence[Key]) -> None: ...

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        with self._lock:
            return (
                {f"handoff_bytes_{way}": count for way, count in self._bytes.items()},
                {f"handoff_seconds_{way}": spent for way, spent in self._seconds.items()},
            )

    def close(self, seconds: float) -> None:
        for peer in self._peers.values():
            peer.close()

    def _load(self, ticket: Ticket, pieces: Sequence[_Piece], over: Callable[[], None], good: list[bool]) -> None:
        peer = self._peer(ticket)

        def job() -> None:
            began = perf_counter()
            try:
                peer.load(ticket.name, pieces)
                with self._lock:
                    self._bytes[peer.way] += sum(piece.into.nbytes for piece in pieces)
                    self._seconds[peer.way] += perf_counter() - began
                for piece in pieces:
                    good[piece.place] = True
            except TransferError as error:
                log.debug("pages did not come: %s", error)
            except Exception:
                log.exception("pages could not be read from another engine; they are computed")
            finally:
                over()

        peer.submit(job)

    def _ended(self, number: int, good: list[bool], left: itertools.count[int]) -> None:
        """One of a job's parts is over; with the last of them the job is."""
        if not next(left):
            self._over.append(Done(number, good))
            self._news.set()

    def _peer(self, ticket: Ticket) -> _Peer:
        where = ticket.host, ticket.port
        peer = self._peers.pop(where, None)
        if peer is None:
            self._make_room()
            peer = _Peer(*where, self._origin, self._transfers)
        self._peers[where] = peer  # who was asked last stands last
        return peer

    def _make_room(self) -> None:
        """Forget those of whom nothing is asked: first who could not be reached, then who was asked longest ago."""
        if len(self._peers) >= _MOST_PEERS:
            idle = sorted((one for one in self._peers.items() if one[1].idle), key=lambda one: one[1].reached)
            for where, peer in idle[: len(self._peers) - _MOST_PEERS + 1]:
                del self._peers[where]
                peer.close()
