"""What the next step computes, decided from counts alone.

A plan is made in three parts, all under one token budget:

    steady    running requests that only advance: always first, so a long prompt never stalls an answer
    chunks    running requests with more known tokens than are fed: the next chunk of each
    starts    waiting requests, in the policy's order, as long as there are slots, budget and stakes that let them in

Stakes are asked in that order. When a scarce one says no, the lowest-ranked running request that is not in the plan yet
gives way: it drops all it has (what it computed stays cached until the memory is needed) and waits again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sapwood.base.plan import Admissions, Admit, Bools, Ints, Known, Longs, Part, Plan, Rows
from sapwood.base.request import Request
from sapwood.base.stake import NEVER, NOW, Stake
from sapwood.scheduler.roster import NO_SLOTS, Roster
from sapwood.scheduler.waiting import Peek


class Span(NamedTuple):
    slot: int
    start: int
    length: int


class Planner:
    """Makes plans for the requests of a `roster`.

    `max_tokens` bounds a step, `max_mixed` the tokens of a step that also decodes beyond those of its steady rows. `peek`
    tells how much of a waiting request is cached, for the policy that asks.
    """

    def __init__(self, roster: Roster, *, max_tokens: int, max_mixed: int, peek: Peek) -> None:
        self.max_tokens, self.max_mixed = max_tokens, max_mixed
        self._roster, self._slots = roster, roster.slots
        self._peek = peek
        self._steady: Ints = NO_SLOTS
        self._ones: Ints = np.ones(len(self._slots.owner), np.int32)
        self._version = 0
        self._blocked: tuple[int, ...] | None = None  # what was the case when nobody more could start

    def plan(self) -> Plan | None:
        """The next step, or None when nothing can be computed until a result comes or a request arrives."""
        number = self._roster.number + 1
        self._make_room()
        self._slots.recycle()
        steady, counts = self._advance(number)
        fed = len(steady) if counts is None else int(counts.sum())
        budget = self.max_tokens - fed
        if len(steady):
            budget = min(budget, self.max_mixed)
        spans, budget = self._continue(budget, number)
        admits = self._start(budget, spans, number)
        if not len(steady) and not spans:
            return None
        self._roster.number = number
        return self._compose(self._rows(steady, counts, spans), admits)

    def _rows(self, steady: Ints, counts: Ints | None, spans: Sequence[Span]) -> Rows:
        s = self._slots
        slots, starts = steady, s.fed[steady]
        if counts is None:
            counts = self._ones[: len(steady)]
        else:
            s.slack[steady] += counts - 1
        heads = counts
        if spans:
            more = np.array(spans, dtype=np.int32)
            slots = np.concatenate([steady, more[:, 0]])
            starts = np.concatenate([starts, more[:, 1]])
            counts = np.concatenate([counts, more[:, 2]])
            ends: Ints = (more[:, 1] + more[:, 2] == s.known[more[:, 0]]).astype(np.int32)
            heads = np.concatenate([heads, ends])
        s.fed[slots] = starts + counts
        s.flying[slots] += heads
        return Rows(len(steady), self._version, slots, starts, counts, heads, s.owner[slots])

    def _compose(self, rows: Rows, admits: Sequence[Admit]) -> Plan:
        roster = self._roster
        parts: list[Part] = [Admissions(tuple(admits))] if admits else []
        if roster.known:
            # To those that still hold their slots; who starts anew brings all tokens along.
            valid = tuple(stretch for owner, stretch in roster.known if self._slots.owner[stretch.slot] == owner)
            roster.known.clear()
            parts += [Known(valid)] if valid else []
        late = False
        for stake in roster.parting:
            parts.extend(stake.parts(rows))
            late |= stake.late(rows)
        return Plan.of(rows, number=roster.number, parts=tuple(parts), late=late)

    # -- steady rows ----------------------------------------------------------------------------------------------

    def _advance(self, number: int) -> tuple[Ints, Ints | None]:
        """Slots that only advance, and how many tokens each feeds; None is one each."""
        s, roster = self._slots, self._roster
        if roster.joining or roster.parted:
            self._regroup()
        fed = s.fed[self._steady]
        wanting = fed < s.limit[self._steady] - 1
        if not wanting.all():
            # Those that may be at their end come back if drafts of theirs are rejected.
            s.apart[self._steady[~wanting]] = True
            self._steady, fed = self._steady[wanting], fed[wanting]
            self._version += 1
        ends = fed + 1
        drafts = self._drafts(ends)
        if drafts is not None:
            ends = ends + drafts
        late = (ends > s.until[self._steady]).nonzero()[0]
        if len(late):
            self._extend(self._steady[late], ends[late], number)
            if roster.parted:
                stayed = self._staying()
                ends, drafts = ends[stayed], None if drafts is None else drafts[stayed]
                self._regroup()
            if drafts is not None:
                ends = np.minimum(ends, s.until[self._steady])
        return self._steady, None if drafts is None else ends - s.fed[self._steady]

    def _drafts(self, lengths: Ints) -> Ints | None:
        """How many drafts each steady row feeds, as the first stake says that has any."""
        if not len(lengths):
            return None
        most = self.max_tokens - len(lengths)
        for stake in self._roster.drafting:
            drafts = stake.drafts(self._steady, lengths, most)
            if drafts is not None:
                # The last token of a request is never fed.
                most_each: Ints = self._slots.limit[self._steady] - 1 - lengths
                return np.minimum(drafts, most_each)
        return None

    def _regroup(self) -> None:
        roster = self._roster
        self._steady = np.concatenate([self._steady[self._staying()], np.array(roster.joining, dtype=np.int32)])
        self._version += 1
        roster.joining.clear()
        roster.parted = False

    def _staying(self) -> Bools:
        """Which of the steady slots still are."""
        s = self._slots
        stay: Bools = (s.owner[self._steady] > 0) & ~s.apart[self._steady]
        return stay

    def _extend(self, due: Ints, ends: Ints, number: int) -> None:
        """Ask the stakes again for rows at their horizon."""
        s, roster = self._slots, self._roster
        horizons = np.full(len(due), NEVER, np.int32)
        for stake, concerned in zip(roster.stakes, roster.concerned, strict=True):
            mine = concerned[due].nonzero()[0]
            if len(mine) == len(due):
                horizons = np.minimum(horizons, stake.take_steady(due, ends, number))
            elif len(mine):
                horizons[mine] = np.minimum(horizons[mine], stake.take_steady(due[mine], ends[mine], number))
        s.until[due] = horizons
        refused = due[horizons <= s.fed[due]]
        if len(refused):
            self._extend_by_rank(sorted(map(s.of, refused.tolist()), key=roster.waiting.rank), number)

    def _extend_by_rank(self, due: Sequence[Request], number: int) -> None:
        """The same one by one, best rank first; when a stake is too scarce, the worst-ranked running request gives way."""
        s, roster = self._slots, self._roster
        safe: Bools = np.zeros(len(s.owner), np.bool_)
        for request in due:
            if not request.running:
                continue  # gave way to a better one
            fed = int(s.fed[request.slot])
            safe[request.slot] = True
            while (no := _refuses(request, fed)) is not None and no.scarce:
                victim = self._victim(safe) or request
                if roster.waiting.rank(victim) < roster.waiting.rank(request):
                    victim = request
                roster.preempt(victim)
                if victim is request:
                    break
            else:
                if no is None:
                    self._reserve(request, fed, fed + 1, number)
                else:
                    roster.call_apart(request)

    def _victim(self, safe: Bools) -> Request | None:
        """The worst-ranked running request that is not `safe` (by slot) and still has something to compute."""
        s = self._slots
        able = self._able()
        able = able[~safe[able]]
        return s.of(s.worst(able)) if len(able) else None

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _continue(self, budget: int, number: int) -> tuple[list[Span], int]:
        """The next chunk of each request with known tokens to feed, and what that leaves of the budget."""
        roster = self._roster
        spans: list[Span] = []
        for request in list(roster.chunked):
            if budget <= 0 or not request.running:
                continue
            no = self._chunk(request, budget, spans, number)
            while no is not None and no.scarce and roster.chunked[-1] is not request:
                roster.preempt(roster.chunked[-1])
                no = self._chunk(request, budget, spans, number)
            if no is None and spans and spans[-1].slot == request.slot:
                budget -= spans[-1].length
        return spans, budget

    def _chunk(self, request: Request, budget: int, spans: list[Span], number: int) -> Stake | None:
        """Plan up to `budget` known tokens of a running request, if there are any; the stake that refuses all of them."""
        s = self._slots
        slot = request.slot
        known, start = int(s.known[slot]), int(s.fed[slot])
        for stake in request.stakes:
            start = stake.resume(request, start)
        s.fed[slot] = start
        count = min(known - start, budget)
        if count <= 0:
            return None
        for stake in request.stakes:
            count = stake.clamp(request, start, count)
            if count <= 0:
                return stake
        self._reserve(request, start, start + count, number)
        spans.append(Span(slot, start, count))
        if start + count == known:
            self._roster.joining.append(slot)
            s.apart[slot] = False
            self._roster.chunked.remove(request)
        return None

    def _reserve(self, request: Request, start: int, end: int, number: int) -> None:
        self._slots.until[request.slot] = min(stake.take(request, start, end, number) for stake in request.stakes)

    # -- starts ---------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Before anything is planned: where nobody more can start, a request may have to give way to the first in line."""
        s, roster = self._slots, self._roster
        if not len(roster.waiting) or (s.num_running < len(s.owner) and self._blocked != self._circumstances()):
            return
        usurped = roster.waiting.usurped(lambda: [s.of(slot) for slot in self._able().tolist()])
        if usurped is not None:
            roster.displace(usurped)

    def _able(self) -> Longs:
        """Slots whose requests have something to compute: others leave theirs by themselves."""
        s = self._slots
        return ((s.owner > 0) & (s.fed - s.slack < s.limit - 1)).nonzero()[0]

    def _start(self, budget: int, spans: list[Span], number: int) -> list[Admit]:
        s, roster = self._slots, self._roster
        admits: list[Admit] = []
        if not len(roster.waiting) or not s.free or budget <= 0 or self._blocked == self._circumstances():
            return admits
        short, lapsed = False, None
        started: list[Request] = []
        for request in roster.waiting.candidates(self._peek):
            if not s.free or budget <= 0:
                break
            if (refuser := _enter(request, number)) is not None:
                lapsed = None if refuser.ready(request) is NOW else request
                short = lapsed is None
                break
            roster.assign(request)
            cached = min(len(request.tokens) - 1, *(stake.seat(request, number) for stake in request.stakes))
            s.fed[request.slot] = cached
            roster.chunked.append(request)
            admits.append(_admit(request, cached))
            started.append(request)
            planned = len(spans)
            self._chunk(request, budget, spans, number)
            budget -= sum(span.length for span in spans[planned:])
        if started:
            roster.waiting.started(started)
            roster.chunked.sort(key=roster.waiting.rank)
        if lapsed is not None:
            roster.call_back(lapsed)
        self._blocked = self._circumstances() if short else None
        return admits

    def _circumstances(self) -> tuple[int, ...]:
        """While these are the same, a start for which there was no room need not be tried again."""
        return self._roster.waiting.version, *(stake.relief for stake in self._roster.stakes)


def _refuses(request: Request, position: int) -> Stake | None:
    """The first stake by which that one position cannot run now."""
    return next((stake for stake in request.stakes if not stake.clamp(request, position, 1)), None)


def _enter(request: Request, number: int) -> Stake | None:
    """Enter with all stakes, or with none; the one that refuses."""
    for place, stake in enumerate(request.stakes):
        if not stake.enter(request, number):
            for entered in request.stakes[:place]:
                entered.drop(request, number, trusted=True)
            return stake
    return None


def _admit(request: Request, cached: int) -> Admit:
    return Admit(
        slot=request.slot,
        tokens=request.spelled,
        fed=cached,
        prompt_len=request.prompt_len,
        limit=request.limit,
        min_len=request.min_len,
        seed=request.seed,
        stop_ids=request.stop_ids,
        params=request.params,
        task=request.task,
    )
