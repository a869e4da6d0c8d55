"""The host's state of running requests: arrays addressed by slot, so that a step costs a few numpy calls."""

from __future__ import annotations

import numpy as np

from sapwood.base.plan import Bools, Ints, Longs
from sapwood.base.request import Request

NO_TOKEN = -1
_FEW_STOPS = 4


class Slots:
    """One entry per slot. A request wants `known + flying - fed` more tokens computed, within its limit.

    Attributes:
        fed: Positions whose KV earlier plans compute, at most: of drafts in flight all are counted in.
        slack: How many of these may turn out to be rejected drafts.
        known: Tokens whose values the host knows; they stand in `history`, and behind them what was last drafted. Where media
            stand in a prompt, these are the tree's keys, negative (`sapwood.base.media`).
        flying: Most tokens that steps in flight may still yield.
        limit: Length at which the request ends. The last token is never fed, so `fed` stays below.
        until: The request's horizon: beyond it the stakes must be asked again.
        owner: Tenancy number, 0 for a free slot; a plan's rows carry it so that late tokens find nobody.
        rank: The request's rank, first what counts most; lower goes first.
        ids: The request's id. verbose: its news need more than a token. min_len: length before which it cannot end by
            a stop token. apart: it is no steady row.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.fed: Ints = np.zeros(num_slots, np.int32)
        self.known: Ints = np.zeros(num_slots, np.int32)
        self.slack: Ints = np.zeros(num_slots, np.int32)
        self.flying: Ints = np.zeros(num_slots, np.int32)
        self.limit: Ints = np.zeros(num_slots, np.int32)
        self.until: Ints = np.zeros(num_slots, np.int32)
        self.min_len: Ints = np.zeros(num_slots, np.int32)
        self.ids: Longs = np.zeros(num_slots, np.int64)
        self.owner: Longs = np.zeros(num_slots, np.int64)
        self.rank: Longs = np.zeros((num_slots, 2), np.int64)
        self.verbose: Bools = np.zeros(num_slots, np.bool_)
        self.apart: Bools = np.zeros(num_slots, np.bool_)
        # Of nearly all requests; those with more stop tokens are looked up one by one, at no cost to the others.
        self._stops: Ints = np.full((_FEW_STOPS, num_slots), NO_TOKEN, np.int32)
        self._num_stops = [0] * num_slots  # of these
        self._users = [0] * _FEW_STOPS  # of each column of them
        self._many_stops: dict[int, frozenset[int]] = {}
        # Zeroed lazily by the operating system: only what is used takes memory.
        self.history: Ints = np.zeros((num_slots, max_model_len + 1), np.int32)
        self.requests: list[Request | None] = [None] * num_slots
        self.free = list(range(num_slots - 1, -1, -1))
        self._freed: list[int] = []
        self._tenancies = 0

    @property
    def num_running(self) -> int:
        return len(self.requests) - len(self.free) - len(self._freed)

    def running(self) -> list[Request]:
        return [request for request in self.requests if request is not None]

    def of(self, slot: int) -> Request:
        request = self.requests[slot]
        assert request is not None
        return request

    def worst(self, slots: Longs) -> int:
        """The slot with the highest rank."""
        first = self.rank[slots, 0]
        slots = slots[first == first.max()]
        return int(slots[self.rank[slots, 1].argmax()])

    def assign(self, request: Request, rank: tuple[int, int]) -> int:
        slot = self.free.pop()
        count = len(request.tokens)
        request.slot = slot
        self.requests[slot] = request
        self.renew(slot)
        self.rank[slot] = rank
        self.ids[slot] = request.id
        self.history[slot, :count] = request.tokens
        self.known[slot] = count
        self.fed[slot] = self.flying[slot] = self.slack[slot] = 0
        self.limit[slot] = request.limit
        self.min_len[slot] = request.min_len
        self.verbose[slot] = True
        self.apart[slot] = False
        self._set_stops(slot, request.stop_ids)
        return slot

    def renew(self, slot: int) -> None:
        """Give the slot another tenancy number: what rows in flight yield for it counts no more."""
        self._tenancies += 1
        self.owner[slot] = self._tenancies

    def release(self, request: Request) -> None:
        """Free the slot from the next plan on: within one plan a slot has one tenant."""
        slot = request.slot
        self.requests[slot] = None
        self.owner[slot] = 0
        self._many_stops.pop(slot, None)
        self._count_stops(slot, 0)
        self._freed.append(slot)
        request.slot = -1

    def recycle(self) -> None:
        self.free.extend(self._freed)
        self._freed.clear()

    def planned(self, slot: int) -> bytes:
        """The tokens that are known and whose KV is planned, as int32 bytes."""
        return self.history[slot, : min(self.known[slot], self.fed[slot])].tobytes()

    def stopped(self, slots: Ints, tokens: Ints) -> Bools:
        """Whether each slot's token is one of its stop tokens."""
        found: Bools = np.zeros(len(slots), np.bool_)
        for users, stops in zip(self._users, self._stops, strict=True):
            if users:
                found |= stops[slots] == tokens
        for slot, many in self._many_stops.items():
            for i in np.flatnonzero(slots == slot).tolist():
                found[i] = int(tokens[i]) in many
        return found

    def _set_stops(self, slot: int, stop_ids: tuple[int, ...]) -> None:
        few = stop_ids if len(stop_ids) <= _FEW_STOPS else ()
        self._stops[:, slot] = (*few, *[NO_TOKEN] * (_FEW_STOPS - len(few)))
        self._count_stops(slot, len(few))
        if stop_ids and not few:
            self._many_stops[slot] = frozenset(stop_ids)

    def _count_stops(self, slot: int, count: int) -> None:
        for column in range(self._num_stops[slot]):
            self._users[column] -= 1
        for column in range(count):
            self._users[column] += 1
        self._num_stops[slot] = count
