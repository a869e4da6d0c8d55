"""Who runs and who waits, and how a request comes and goes: what planning and landing have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.news import News
from sapwood.base.plan import Bools, Ints, Stretch
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Ready, Refusal, Stake
from sapwood.scheduler.waiting import Waiting

NO_SLOTS: Ints = np.zeros(0, np.int32)


class Roster:
    """Every request is in one place: aside (some stake says LATER), waiting, or in a slot.

    Those in slots are steady rows, about to join these, or `chunked`: rows with known tokens to feed, or held back by a
    stake.

    Attributes:
        number: The last plan's.
        chunked: By rank.
        joining: Slots that are steady from the next plan on.
        parted: A steady slot was released, or is not steady any more.
        known: With the owner each: tokens that the device does not know yet.
        concerned: By stake and slot.
    """

    def __init__(self, slots: Slots, waiting: Waiting, stakes: Sequence[Stake]) -> None:
        self.slots, self.waiting, self.stakes = slots, waiting, tuple(stakes)
        # Of those that are asked in every step, who has something to say: most have not, and a step has few microseconds for the host.
        self.drafting, self.landing = having(self.stakes, "drafts"), having(self.stakes, "landed")
        self.parting, self.filling = having(self.stakes, "parts", "late"), having(self.stakes, "fill")
        self.number = 0
        self.num_preempted = 0
        self.aside: list[Request] = []
        self.chunked: list[Request] = []
        self.joining: list[int] = []
        self.parted = False
        self.known: list[tuple[int, Stretch]] = []
        self.concerned: Bools = np.zeros((len(self.stakes), len(slots.owner)), np.bool_)
        self._by_id: dict[int, Request] = {}

    # -- coming ---------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        assert request.id not in self._by_id and request.prompt_len < request.limit
        self._by_id[request.id] = request
        request.stakes = tuple(stake for stake in self.stakes if stake.concerns(request))
        self.aside.append(request)

    def usher(self) -> list[News]:
        """Let those wait in line for whom nobody says LATER any more; news of those who are refused."""
        if not self.aside:
            return []
        refused, aside = [], []
        for request in self.aside:
            answers = _answers(request)
            why = next((answer.why for answer in answers if isinstance(answer, Refusal)), None)
            if why is not None:
                self.forget(request)
                refused.append(News(request.id, [], finish="error", error=why))
            elif LATER in answers:
                aside.append(request)
            else:
                self.waiting.add(request)
        self.aside = aside
        return refused

    def call_back(self, request: Request) -> None:
        """One that waits in line is not ready any more."""
        self.waiting.remove(request)
        self.aside.append(request)

    def assign(self, request: Request) -> None:
        """Give a request a slot."""
        slot = self.slots.assign(request, self.waiting.rank(request))
        self.concerned[:, slot] = [stake in request.stakes for stake in self.stakes]

    def call_apart(self, request: Request) -> None:
        """The request is no steady row: it has known tokens to feed, or is held back."""
        slot = request.slot
        if slot in self.joining:
            self.joining.remove(slot)
        else:
            self.slots.apart[slot] = self.parted = True
        self.chunked.append(request)
        self.chunked.sort(key=self.waiting.rank)

    # -- going ----------------------------------------------------------------------------------------------------

    def leave(self, request: Request, *, trusted: bool = True) -> None:
        """A running request gives back what it has."""
        slot = request.slot
        for stake in request.stakes:
            stake.drop(request, self.number, trusted=trusted)
        self.waiting.left(request, int(self.slots.known[slot]))
        self.slots.release(request)
        if request in self.chunked:
            self.chunked.remove(request)
        elif slot in self.joining:
            self.joining.remove(slot)
        else:
            self.parted = True

    def end(self, request: Request, *, trusted: bool = True) -> None:
        """A running request is done."""
        del self._by_id[request.id]
        self.leave(request, trusted=trusted)

    def forget(self, request: Request) -> None:
        """A request that does not run is gone for good."""
        del self._by_id[request.id]
        for stake in request.stakes:
            stake.forget(request)

    def preempt(self, request: Request) -> None:
        """Take a running request's slot, since something that somebody else needs is scarce."""
        self.displace(request)
        for stake in request.stakes:
            stake.pressed()

    def displace(self, request: Request) -> None:
        """Take a running request's slot, which is somebody else's turn."""
        self._suspend(request)
        self.waiting.add(request)
        self.num_preempted += 1

    def retract(self) -> int:
        """Take every running request's slot; how many they were."""
        running = self.slots.running()
        for request in running:
            self._suspend(request)
            self.waiting.add(request)
        return len(running)

    def set_aside(self, request: Request) -> None:
        """Take a running request's slot until its stakes say that it is ready again."""
        self._suspend(request)
        self.aside.append(request)

    def _suspend(self, request: Request) -> None:
        """A running request gives up its slot, and keeps what it has generated as known tokens.

        Tokens of steps in flight are lost and will be drawn again: the same ones, since choices depend on seed and
        position only.
        """
        s = self.slots
        request.tokens = s.history[request.slot, : s.known[request.slot]].copy()
        if not request.scored:
            request.prompt_logprobs.clear()
        self.leave(request)

    def abort(self, id: int) -> bool:
        """End a request at once; False when there is no such request (any more)."""
        request = self._by_id.get(id)
        if request is None:
            return False
        if request.running:
            self.end(request)
            return True
        if request in self.aside:
            self.aside.remove(request)
        else:
            self.waiting.remove(request)
        self.forget(request)
        return True

    def clear(self) -> list[int]:
        """Nobody is left, whatever state a plan that was cut off left them in; the ids of all."""
        for request in self.slots.running():
            self.leave(request, trusted=False)
        lost = list(self._by_id.values())
        for request in lost:
            self.forget(request)
        self.waiting.clear()
        self.aside.clear()
        self.known.clear()
        for stake in self.stakes:
            stake.reset()
        return [request.id for request in lost]


def _answers(request: Request) -> list[Ready]:
    """What stakes say to the question whether it is ready; those that reshape it come first, and others only once these say NOW."""
    answers = [stake.ready(request) for stake in request.stakes if stake.reshapes]
    if answers and any(answer is not NOW for answer in answers):
        return answers
    return answers + [stake.ready(request) for stake in request.stakes if not stake.reshapes]


def having(stakes: Sequence[Stake], *methods: str) -> tuple[Stake, ...]:
    """Those that have one of these methods of their own."""
    return tuple(one for one in stakes if any(getattr(type(one), name) is not getattr(Stake, name) for name in methods))
