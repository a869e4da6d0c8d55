"""Memory that the ranks of one host share: counters, one-way messages from the first rank to all others, and room for tensors.

    words      alarm, its kind, written | of each rank: arrived, read, beats, asleep, told, of each box sent, taken, and moved      counters of 8 bytes, each rank's in a line of its own
    reports    what each rank has to say once: a message of its start, or why it ends
    ring       messages of the first rank, read by all others
    slots      two for each rank, for `SharedMesh`
    boxes      two for each rank, with bytes that one other sends to it: hidden states of the stage before, and what the last stage yields

Counters are written by one rank each and only grow, so that nobody ever holds a lock; processors on which writes become visible in
the order that they were made in (x86) need nothing more, for others `publish` passes a lock.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sapwood.base.errors import Lost, UserError

SLOT_BYTES = 1 << 20
_REPORT_BYTES = 1 << 14
_RING_BYTES = 1 << 20
_BOX_BYTES = 1 << 20
_BOX_PART = 1 << 18  # after which there is something to take
_LINE = 16  # words
_ALARM, _MENDABLE, _WRITTEN = range(3)
_ARRIVED, _READ, _BEATS, _ASLEEP, _TOLD, _BOXES = range(6)
_MOVED = _BOXES + 4
_SPINS = 200  # looks at a counter before others may have the core
_REST_SPINS, _REST_SECONDS = 20_000, 50e-6
_IDLE_SPINS, _IDLE_SECONDS = 2_000, 0.5
_OPEN_FILES = Path("/proc/self/fd")
_LENGTH = struct.Struct("<Q")


class Segment:
    """The ranks' memory as rank `rank` of `size` sees it, in the file at `path`."""

    def __init__(self, path: Path, rank: int, size: int) -> None:
        self.path, self.rank, self.size = path, rank, size
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _num_bytes(size))
        self.memory = memoryview(self._map)
        self._words = self.memory[: _LINE * 8 * (1 + size)].cast("q")
        self._ring = self.memory[_ring_at(size) : _ring_at(size) + _RING_BYTES]
        self._fence = threading.Lock()
        self._let_go: Callable[[], None] | None = None  # of its name
        self._others = [other for other in range(size) if other != rank]

    @classmethod
    def create(cls, size: int) -> Segment:
        """A new one, as its first rank sees it. Where there are files without a name it is one: it is gone with who has it, however
        these end, and is found by others through this process until `forget`."""
        path, let_go = unnamed(_num_bytes(size))
        made = cls(path, 0, size)
        made._let_go = let_go
        return made

    def forget(self) -> None:
        """All ranks have it, so that nobody needs its name any more: it is gone with the last of them."""
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()

    def slot(self, rank: int, turn: int) -> memoryview:
        """Room of `SLOT_BYTES` that `rank` alone writes."""
        at = _ring_at(self.size) + _RING_BYTES + (2 * rank + turn) * SLOT_BYTES
        return self.memory[at : at + SLOT_BYTES]

    # -- counters

    def arrive(self, count: int, members: Sequence[int]) -> None:
        """This rank is done with exchange number `count`; return when all members are. Raises Lost."""
        self._publish(self._at(self.rank, _ARRIVED), count)
        for other in members:
            if other != self.rank:
                self._wait(self._at(other, _ARRIVED), count)

    def beat(self) -> None:
        self._words[self._at(self.rank, _BEATS)] += 1

    def beats(self, rank: int) -> int:
        return self._words[self._at(rank, _BEATS)]

    def raise_alarm(self, rank: int, why: str, *, mendable: bool = False) -> None:
        """A rank is lost: whoever waits for others raises Lost, or UserError if it is `mendable`, with the first reason that is given."""
        if not self._words[_ALARM]:
            self.report(rank, why.encode())
            self._words[_MENDABLE] = mendable
            self._publish(_ALARM, 1 + rank)

    def check(self) -> None:
        """Raises Lost, or UserError, if a rank is lost."""
        if self._words[_ALARM]:
            rank = self._words[_ALARM] - 1
            why = self.told(rank).decode(errors="replace")
            raise UserError(why) if self._words[_MENDABLE] else Lost(f"rank {rank} {why}")

    def moved(self) -> None:
        """This rank has copied the pages that it was told to, once more."""
        self._publish(at := self._at(self.rank, _MOVED), self._words[at] + 1)

    def all_moved(self, count: int) -> bool:
        """Whether all other ranks have, so many times."""
        return all(self._words[self._at(other, _MOVED)] >= count for other in self._others)

    # -- reports

    def report(self, rank: int, message: bytes) -> None:
        """What a rank has to say, in place of what it has said before."""
        message = message[: _REPORT_BYTES - 1]
        at = _reports_at(self.size) + rank * _REPORT_BYTES
        self.memory[at : at + len(message)] = message
        self._publish(self._at(rank, _TOLD), len(message))

    def told(self, rank: int) -> bytes:
        """What it has said last, when it has said something. Raises Lost."""
        self._wait(self._at(rank, _TOLD), 1)
        length, at = self._words[self._at(rank, _TOLD)], _reports_at(self.size) + rank * _REPORT_BYTES
        return bytes(self.memory[at : at + length])

    # -- messages

    def send(self, message: bytes, wake: Callable[[int], None]) -> None:
        """To all other ranks; `wake` is called for those that sleep. Raises Lost."""
        written = self._words[_WRITTEN]
        for data in (_LENGTH.pack(len(message)), message):
            for first in range(0, len(data), _RING_BYTES):
                part = data[first : first + _RING_BYTES]
                for other in self._others:
                    self._wait(self._at(other, _READ), written + len(part) - _RING_BYTES)
                at = written % _RING_BYTES
                head = min(len(part), _RING_BYTES - at)
                self._ring[at : at + head], self._ring[: len(part) - head] = part[:head], part[head:]
                written += len(part)
                self._publish(_WRITTEN, written)
                for other in self._others:
                    if self._words[self._at(other, _ASLEEP)]:
                        wake(other)

    def settle(self, message: bytes, wake: Callable[[int], None]) -> None:
        """Send a message, and wait until all others take it: then they have done all that they were sent before. Raises Lost."""
        self.send(message, wake)
        for other in self._others:
            self._wait(self._at(other, _READ), self._words[_WRITTEN])

    def receive(self, woken: threading.Event) -> bytes:
        """The next message of the first rank; sleeps until `woken` if there is none for a while. Raises Lost."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, woken))
        return self._take(length, woken)

    # -- boxes

    def put(self, rank: int, box: int, data: memoryview) -> None:
        """Send bytes to the box of another rank, which nobody else sends to. Raises Lost."""
        sent = self._at(rank, _BOXES) + 2 * box
        memory, done, count = self._box(rank, box), 0, self._words[sent]
        while done < len(data):
            at = count % _BOX_BYTES
            part = min(len(data) - done, _BOX_BYTES - at, _BOX_PART)
            self._wait(sent + 1, count + part - _BOX_BYTES)
            memory[at : at + part] = data[done : done + part]
            done, count = done + part, count + part
            self._publish(sent, count)

    def fetch(self, box: int, into: memoryview) -> None:
        """Fill `into` with the next bytes of a box of this rank; waits for them. Raises Lost."""
        sent = self._at(self.rank, _BOXES) + 2 * box
        memory, done, count = self._box(self.rank, box), 0, self._words[sent + 1]
        while done < len(into):
            self._wait(sent, count + 1)
            at = count % _BOX_BYTES
            part = min(len(into) - done, _BOX_BYTES - at, self._words[sent] - count)
            into[done : done + part] = memory[at : at + part]
            done, count = done + part, count + part
            self._publish(sent + 1, count)

    def _box(self, rank: int, box: int) -> memoryview:
        at = _boxes_at(self.size) + (2 * rank + box) * _BOX_BYTES
        return self.memory[at : at + _BOX_BYTES]

    def _take(self, length: int, woken: threading.Event) -> bytes:
        found, mine = bytearray(), self._at(self.rank, _READ)
        while len(found) < length:
            read = self._words[mine]
            self._sleep_until(read + 1, woken)
            at = read % _RING_BYTES
            count = min(self._words[_WRITTEN] - read, length - len(found), _RING_BYTES - at)
            found += self._ring[at : at + count]
            self._publish(mine, read + count)
        return bytes(found)

    def _sleep_until(self, written: int, woken: threading.Event) -> None:
        """Busily at first: while requests run, the next step comes at once."""
        for spin in range(_IDLE_SPINS):
            if self._words[_WRITTEN] >= written:
                return
            if spin > _SPINS:
                time.sleep(0)
        asleep = self._at(self.rank, _ASLEEP)
        while self._words[_WRITTEN] < written:
            woken.clear()
            self._publish(asleep, 1)
            if self._words[_WRITTEN] < written:
                woken.wait(_IDLE_SECONDS)
            self.check()
        self._publish(asleep, 0)

    def _at(self, rank: int, what: int) -> int:
        return _LINE * (1 + rank) + what

    def _publish(self, at: int, value: int) -> None:
        with self._fence:  # what was written before is seen before
            self._words[at] = value
        with self._fence:  # and this before what is read next
            pass

    def _wait(self, at: int, least: int) -> None:
        spins = 0
        while self._words[at] < least:
            spins += 1
            if spins > _SPINS:
                self.check()
                time.sleep(0 if spins < _REST_SPINS else _REST_SECONDS)


def unnamed(num_bytes: int) -> tuple[Path, Callable[[], None]]:
    """A new file that other processes find by this path until the function is called, and keep as long as they have it."""
    if hasattr(os, "memfd_create") and _OPEN_FILES.exists():
        number = os.memfd_create("sapwood-ranks")
        path, let_go = Path(f"/proc/{os.getpid()}/fd/{number}"), partial(os.close, number)
    else:
        number, name = tempfile.mkstemp(prefix="sapwood-")
        path, let_go = Path(name), partial(_remove, number, name)
    os.truncate(number, num_bytes)
    return path, let_go


def _remove(number: int, name: str) -> None:
    os.close(number)
    Path(name).unlink(missing_ok=True)


def _reports_at(size: int) -> int:
    return _LINE * 8 * (1 + size)


def _ring_at(size: int) -> int:
    return -(-(_reports_at(size) + size * _REPORT_BYTES) // 4096) * 4096


def _num_bytes(size: int) -> int:
    return _boxes_at(size) + 2 * size * _BOX_BYTES


def _boxes_at(size: int) -> int:
    return _ring_at(size) + _RING_BYTES + 2 * size * SLOT_BYTES
