"""What a request needs in order to run, or is held to: the protocol by which features join the scheduler.

Pages of the KV cache, a grammar's verdicts, drafts, later adapters, encoders, prefixes that arrive: each is a stake, and
the scheduler knows none of them. It asks, in this order:

    arrival     concerns? · ready?            a request for which one says LATER waits aside and blocks nobody
    start       enter? · seat                 all stakes or none
    each chunk  resume · clamp · take         of rows with something to compute
    steady      drafts · take_steady          of rows that only advance, as arrays, when they reach their horizon
    each plan   halts? · parts, and late ones by fill
    landing     verified · land · landed      what follows from tokens that have become known
    leaving     drop
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from sapwood.base.plan import Bools, Ints, LatePart, Longs, Part, Plan, Rows
from sapwood.base.request import Request

NEVER = 2**31 - 1
"""A horizon that no sequence reaches."""


class Wait(Enum):
    """NOW: nothing stands in the way. LATER: not yet; the request is skipped, and asked about again."""

    NOW = 0
    LATER = 1


NOW, LATER = Wait.NOW, Wait.LATER


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request will never run."""

    why: str


Ready = Wait | Refusal


class Landed(NamedTuple):
    """Tokens of one row that have just become known, up to the one that ends the request if one does; `flying` more at
    most are on their way to it. `ended`: the last of them ends it."""

    row: int
    request: Request
    tokens: list[int]
    flying: int
    ended: bool


@dataclass(frozen=True, slots=True, eq=False)
class Ruling:
    """What a stake says to tokens that have landed.

    Of the tokens only the first `taken` count, if that is said. `forced` are the tokens that follow in any case, and are
    known with them. `done`: nothing may follow these. `later`: the request gives up its slot until it is `ready` again.
    With an `error` it ends instead.
    """

    taken: int | None = None
    later: bool = False
    forced: tuple[int, ...] = ()
    done: bool = False
    error: str = ""


class Stake:
    """One that never stands in the way; a stake overrides what it has a say in.

    The scheduler calls, from one thread. `number` is that of the plan being made. A request that `concerns` a stake does
    so until it leaves.

    Attributes:
        scarce: A row that it holds back may run if another running request gives way to it.
        relief: Grows whenever a request that could not `enter` might.
        reshapes: A request is another one, with another prompt, when this one says NOW; until then no other is asked whether it is ready.
        rules: It wants to see tokens land.
        halts: Nothing is planned while it is true: all stay where they are, and what flies still lands.
    """

    scarce = False
    halts = False
    reshapes = False
    rules = False
    relief = 0

    def concerns(self, request: Request) -> bool:
        """Whether it has a say in this request. Asked once, at arrival."""
        return True

    def ready(self, request: Request) -> Ready:
        """Whether a waiting request may be started. Asked until it says NOW or refuses, and anew after a ruling of `later`, or where it has
        not let the request `enter`."""
        return NOW

    def wait(self, seconds: float) -> None:
        """Return once a request that was LATER may be ready, or after that time. Called when there is nothing else to do."""

    def enter(self, request: Request, number: int) -> bool:
        """Lease what a start needs; False if there is no room, and then nothing is kept. The request has no slot yet. One that is not
        `ready` any more leaves the line until it is, and holds up nobody."""
        return True

    def seat(self, request: Request, number: int) -> int:
        """All stakes have let the request in and it has a slot: how many of its tokens need not be computed."""
        return NEVER

    def resume(self, request: Request, start: int) -> int:
        """Where the next chunk may start, at `start` or behind it: what others have computed since need not be."""
        return start

    def clamp(self, request: Request, start: int, count: int) -> int:
        """How many of the positions from `start` on may run now."""
        return count

    def take(self, request: Request, start: int, end: int, number: int) -> int:
        """Reserve for positions [start, end), which `clamp` has allowed. Returns the horizon: the position up to which the
        request need not ask again while it only advances."""
        return NEVER

    def take_steady(self, slots: Ints, ends: Ints, number: int) -> Ints:
        """Reserve for rows at their horizon, all that ends below `ends`. Returns each row's new horizon; one that is not
        beyond where the row starts is a refusal, of which `clamp` and `take` see to."""
        return _never(slots)

    def drafts(self, slots: Ints, lengths: Ints, most: int) -> Ints | None:
        """How many drafts each of these steady rows may feed, in all no more than `most`; None is none.

        `lengths` are the most tokens that each will have when the step begins. What is fed are the tokens that stand
        there, whatever they are.
        """
        return None

    def parts(self, rows: Rows) -> Sequence[Part]:
        """What the device has to be told with this plan."""
        return ()

    def late(self, rows: Rows) -> bool:
        """Whether the step can be sampled only after all steps before it have landed."""
        return False

    def hear(self, plan: Plan, alive: Bools, proposed: Ints) -> None:
        """Before anything is filled: the drafts that the device has made for the plan's `Propose`, row after row, if they are
        told."""

    def fill(self, plan: Plan, alive: Bools) -> LatePart | None:
        """Between a step's forward and its sampling: what can be said only now. `alive` tells which rows still count."""
        return None

    def verified(self, plan: Plan, rows: Longs, right: Ints) -> None:
        """A plan with drafts has landed: in each of these rows, all that have heads and still count, so many drafts were
        right. Called once for each such plan, in their order, before what the rows yielded is known."""

    def land(self, landed: Sequence[Landed]) -> Mapping[int, Ruling]:
        """Take in tokens of requests that it concerns; what follows from them, by row, where anything does."""
        return {}

    def landed(self, plan: Plan) -> None:
        """A plan has landed, and what follows from it has: rows that failed have left. Called for each, in their order."""

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        """The request leaves its slot; it may come back. What it has computed is not to be kept if it is not `trusted`."""

    def forget(self, request: Request) -> None:
        """A request that waits, ready or not, is gone for good."""

    def pressed(self) -> None:
        """A running request had to give way."""

    def reset(self) -> None:
        """All requests are gone, and what they computed is lost: plans may have been cut off anywhere."""

    def emptied(self) -> None:
        """What pages of the device hold is about to be lost, and nobody runs: nothing may be read from them or brought to them
        before somebody is asked about again."""

    def audit(self, running: Sequence[Request]) -> int:
        """Compare its books with who is running, mend them, and return how many entries were wrong."""
        return 0

    def tidy(self) -> bool:
        """While there is nothing else to do, do a short piece of work; False if there is none."""
        return False

    def close(self) -> None:
        """The engine ends; nothing is called after this."""


def _never(slots: Ints) -> Ints:
    return slots * 0 + NEVER
