"""What an encoder leaves of an input, leased by content: requests that bring the same input share it, and it is read once. They do so within
their namespace: how fast an answer begins tells nobody what others have sent.

An entry of the pool is somebody's while requests that look at it run. After that it stays until another input needs the room, the one
that was used longest ago first, so that who comes back, or was preempted, finds it there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from sapwood.base.media import Kind, Media
from sapwood.base.plan import Inputs, Part, Rows
from sapwood.base.request import Request
from sapwood.base.stake import NEVER, NOW, Ready, Refusal, Stake


class InputStake(Stake):
    """Has a say in all requests of a model that reads inputs of a `kind`: each brings one, of at most `longest` positions.

    The pool has `entries`, numbered from 1. A step reads inputs of about `budget` positions, one in any case, so that running requests
    do not wait for many.
    """

    def __init__(self, kind: Kind, *, entries: int, longest: int, budget: int) -> None:
        self._kind, self._longest, self._budget = kind, longest, budget
        self._count = entries
        self.reset()
        self.counters = {"encoder_inputs_read": 0, "encoder_inputs_reused": 0, "encoder_positions_read": 0}

    def emptied(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._free = list(range(self._count, 0, -1))
        self._entries: dict[bytes, int] = {}  # what is read, or will be with the next plan, by namespace and digest
        self._users: dict[int, int] = {}  # of each entry that has some
        self._idle: OrderedDict[int, bytes] = OrderedDict()  # entries without, by when they were used last
        self._leases: dict[int, tuple[int, bytes]] = {}  # of requests, by their ids
        self._fresh: dict[int, Media] = {}  # entries of which no plan has told yet
        self._turned: list[tuple[int, int]] = []  # (slot, entry), likewise
        self._spent, self._number, self._short = 0, -1, False

    def ready(self, request: Request) -> Ready:
        media = request.media
        if len(media) != 1 or media[0].kind != self._kind:
            return Refusal(f"this model reads one input ({self._kind}) with each request, this one has {len(media)}")
        if not 0 < media[0].length <= self._longest:
            return Refusal(f"an input must have 1 to {self._longest} positions, this one has {media[0].length}")
        return NOW

    def enter(self, request: Request, number: int) -> bool:
        media = request.media[0]
        name = media.digest + request.namespace.encode()
        entry = self._entries.get(name)
        if entry is None:
            entry = self._take(media, name, number)
            if entry is None:
                return False
        else:
            self.counters["encoder_inputs_reused"] += 1
        self._idle.pop(entry, None)
        self._users[entry] = self._users.get(entry, 0) + 1
        self._leases[request.id] = entry, name
        return True

    def _take(self, media: Media, name: bytes, number: int) -> int | None:
        """An entry for an input that is to be read with this plan; None if there is no room, or the step has read enough."""
        if number != self._number:
            self._number, self._spent = number, 0
        if self._spent and self._spent + media.length > self._budget:
            self._short = True
            return None
        if self._free:
            entry = self._free.pop()
        elif self._idle:
            entry, oldest = self._idle.popitem(last=False)
            del self._entries[oldest]
        else:
            return None
        self._spent += media.length
        self._entries[name] = entry
        self._fresh[entry] = media
        return entry

    def seat(self, request: Request, number: int) -> int:
        self._turned.append((request.slot, self._leases[request.id][0]))
        return NEVER

    def parts(self, rows: Rows) -> Sequence[Part]:
        if self._short:
            self._short, self.relief = False, self.relief + 1
        if not self._fresh and not self._turned:
            return ()
        fresh, turned = self._fresh, np.array(self._turned, np.int32).reshape(-1, 2)
        self._fresh, self._turned = {}, []
        self.counters["encoder_inputs_read"] += len(fresh)
        self.counters["encoder_positions_read"] += sum(media.length for media in fresh.values())
        return (Inputs(tuple(fresh.values()), np.array(list(fresh), np.int32), turned[:, 0], turned[:, 1]),)

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        lease = self._leases.pop(request.id, None)
        if lease is None:
            return
        entry, name = lease
        if request.running:
            self._turned = [one for one in self._turned if one[0] != request.slot]
        self._users[entry] -= 1
        self.relief += 1
        if self._users[entry]:
            return
        del self._users[entry]
        if entry in self._fresh or not trusted:
            self._fresh.pop(entry, None)
            del self._entries[name]
            self._free.append(entry)
        else:
            self._idle[entry] = name

    def flush(self) -> int:
        """Forget what nobody who runs looks at; how many inputs these were."""
        for entry, name in self._idle.items():
            del self._entries[name]
            self._free.append(entry)
        count = len(self._idle)
        self._idle.clear()
        self.relief += 1
        return count

    def audit(self, running: Sequence[Request]) -> int:
        """Leases follow from who is running; those of others are given back."""
        ids = {request.id for request in running}
        lost = [id for id in self._leases if id not in ids]
        for id in lost:
            entry, name = self._leases.pop(id)
            self._users[entry] -= 1
            if not self._users[entry]:
                del self._users[entry]
                self._idle[entry] = name
        return len(lost)

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """What was read and what was found since the start."""
        return self.counters, {}
