"""Media that stand in prompts as a stake: what has to be encoded before a chunk, where its result lies, and where tokens find it.

A chunk that reaches into a span needs the whole of that medium's result, since encoders see all of it. So a chunk ends before a span
whose medium can not be encoded in this step, because the budget or the room has been used up; the first of a step always can. Results
stay, by content and within a namespace, until others need their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sapwood.base.media import Media, Span
from sapwood.base.plan import Carry, Embed, Encode, Ints, Part, Rows, Seat, Stretch
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import NOW, Ready, Refusal, Stake
from sapwood.encode.room import Attic, Room


class _Move(NamedTuple):
    """As in `Carry`."""

    kind: Literal["keep", "bring", "drop", "clear"]
    number: int
    rows: Ints


_NO_ROWS: Ints = np.zeros(0, np.int32)


class EncodeStake(Stake):
    """Encodes up to `budget` positions in a step, or one medium, into `room`; what makes way there goes to the `attic`, and comes back when
    it is wanted. No chunk ends within a span if spans are taken `whole`."""

    def __init__(
        self, slots: Slots, room: Room, *, budget: int, whole: bool = False, attic: Attic | None = None
    ) -> None:
        self._slots, self._room, self._budget, self._whole = slots, room, budget, whole
        self._attic = attic or Attic()
        self._making = 1  # the plan being made, as the room is told
        self._spent = 0  # positions of what it encodes
        self._encodes: list[tuple[Media, Ints]] = []
        self._seats: list[Seat] = []
        self._stretches: list[Stretch] = []
        self._moves: list[_Move] = []
        self._counts = dict.fromkeys(
            ("encoded_media", "encoded_positions", "encoder_cache_hits", "encoder_host_hits", "encoder_host_kept"), 0
        )

    # -- starts ---------------------------------------------------------------------------------------------------

    def ready(self, request: Request) -> Ready:
        longest = max((request.media[span.index].length for span in request.spans), default=0)
        if longest > self._room.size:
            return Refusal(
                f"an input takes {longest} positions, and there is room for {self._room.size}: send a smaller one, or "
                "raise --encoder-cache-memory"
            )
        return NOW

    def seat(self, request: Request, number: int) -> int:
        turns, behind = columns(request)
        length = request.prompt_len if request.spans else 0
        self._seats.append(Seat(request.slot, length, turns, behind))
        return super().seat(request, number)

    # -- chunks ---------------------------------------------------------------------------------------------------

    def clamp(self, request: Request, start: int, count: int) -> int:
        taken, rows, new, met = self._room.taken(self._making), 0, 0, set[bytes]()
        for span in _within(request.spans, start, start + count):
            if self._whole and span.end > start + count:
                return max(span.start - start, 0)
            medium, name = request.media[span.index], _name(request, span)
            entry = self._room.get(name)
            if name in met or (entry is not None and entry.used == self._making):
                continue
            met.add(name)
            rows += medium.length
            fresh = entry is None and name not in self._attic
            new += medium.length if fresh else 0
            # One medium may cost more than the budget, if nothing else is encoded.
            dear = fresh and self._budget < self._spent + new != medium.length
            if dear or taken + rows > self._room.size:
                return max(span.start - start, 0)
        return count

    def take(self, request: Request, start: int, end: int, number: int) -> int:
        known = list(_within(request.spans, start, end))
        # What is there is kept before anything has to make way.
        for span in known:
            if self._room.get(_name(request, span)) is not None:
                self._room.use(_name(request, span), self._making)
        for span in known:
            self._place(request, span, start, end)
        return super().take(request, start, end, number)

    def _place(self, request: Request, span: Span, start: int, end: int) -> None:
        medium, name = request.media[span.index], _name(request, span)
        if self._room.get(name) is not None:
            rows = self._room.use(name, self._making)
            self._counts["encoder_cache_hits"] += start <= span.start
        elif (number := self._attic.take(name)) is not None:
            rows = self._room.add(name, medium.length, self._making, self._keep)
            self._moves.append(_Move("bring", number, rows))
            self._counts["encoder_host_hits"] += 1
        else:
            rows = self._room.add(name, medium.length, self._making, self._keep)
            self._encodes.append((medium, rows))
            self._spent += medium.length
            self._counts["encoded_media"] += 1
            self._counts["encoded_positions"] += medium.length
        first, last = max(start, span.start), min(end, span.end)
        offset = span.offset - span.start
        self._stretches.append(Stretch(request.slot, first, rows[first + offset : last + offset]))

    def _keep(self, name: bytes, rows: Ints) -> None:
        """A result makes way on the device."""
        number, dropped = self._attic.put(name, len(rows))
        self._moves += [_Move("drop", one, _NO_ROWS) for one in dropped]
        if number is not None:
            self._moves.append(_Move("keep", number, rows))
            self._counts["encoder_host_kept"] += 1

    # -- plans ----------------------------------------------------------------------------------------------------

    def parts(self, rows: Rows) -> Sequence[Part]:
        found: list[Part] = []
        if self._moves:
            kinds, numbers, rows_moved = zip(*self._moves, strict=True)
            found.append(Carry(kinds, numbers, rows_moved))
        if self._encodes:
            found.append(Encode(tuple(medium for medium, _ in self._encodes), tuple(rows for _, rows in self._encodes)))
        if self._seats or self._stretches:
            found.append(Embed(tuple(self._seats), tuple(self._stretches)))
        self._next()
        return found

    def _next(self) -> None:
        self._making += 1
        self._spent = 0
        self._encodes, self._seats, self._stretches, self._moves = [], [], [], []

    def reset(self) -> None:
        self._next()
        self.flush()

    def emptied(self) -> None:
        self.reset()

    def flush(self) -> int:
        """Forget all results, between two plans; how many they were. What still runs has its own encoded again where it needs them."""
        self._moves = [_Move("clear", 0, _NO_ROWS)] if self._attic.size else []
        return self._room.clear() + self._attic.clear()

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """Media and positions that were encoded, spans for which that was not needed, results that made way, and that went to the host and
        came back."""
        return {**self._counts, "encoder_evictions": self._room.num_evicted}, {}


def _name(request: Request, span: Span) -> bytes:
    """What the result of a span's medium is called. Within its namespace alone: how fast an answer begins tells nobody what others show."""
    return request.media[span.index].digest + request.namespace.encode()


def _within(spans: Sequence[Span], start: int, end: int) -> Iterator[Span]:
    """Those of which something lies in [start, end)."""
    return (span for span in spans if span.start < end and span.end > start)


def columns(request: Request) -> tuple[Ints | None, int]:
    """turns_3P, by how much each of a prompt's three rotary positions is more than its place, and the same of what comes behind it; None
    and 0 where media have no `turns` of their own.

    The tokens of a text go on by one; a medium's positions are its turns from where it begins, and what follows goes on behind the
    greatest (multimodal rotary positions, Wang et al., 2024).
    """
    if not any("turns" in request.media[span.index].arrays for span in request.spans):
        return None, 0
    places_3P = np.empty((3, request.prompt_len), np.int32)
    done = at = 0
    for span in request.spans:
        places_3P[:, done : span.start] = np.arange(at, at + span.start - done)
        at += span.start - done
        turns = request.media[span.index].arrays["turns"].numpy().astype(np.int32)
        mine = turns[:, span.offset : span.offset + span.length]
        places_3P[:, span.start : span.end] = at + mine
        at += int(mine.max()) + 1
        done = span.end
    rest = request.prompt_len - done
    places_3P[:, done:] = np.arange(at, at + rest)
    more_3P: Ints = (places_3P - np.arange(request.prompt_len)).astype(np.int32)
    return more_3P, at + rest - request.prompt_len
