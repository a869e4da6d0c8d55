"""A house of models: each an engine of its own behind one front, begun when it is first asked for.

As many as are allowed have the device's memory at once. Who needs room takes it from the one that was asked for least lately and has
nothing to do, which sleeps then, or ends; one that is always busy is made to yield after a while. Pinned ones stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic, time
from typing import Any, Literal

from starlette.applications import Starlette

from sapwood.base.errors import EngineDead, Overloaded, RequestError, SapwoodError
from sapwood.config.devices import rules_of
from sapwood.config.house import Resident
from sapwood.engine.tasks import end
from sapwood.server.front import Front
from sapwood.server.sleeping import sleep, wake

log = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "ready", "waking", "asleep"]

Opening = Callable[[Resident], AbstractAsyncContextManager[Starlette]]
"""Begins an engine, and makes the application that serves it; over when the engine has ended. Raises SapwoodError."""

PATIENCE_SECONDS = 10.0  # that one waits for another to have nothing to do, before that one takes no more requests
_LOOK_SECONDS = 1.0  # between two looks at whether one still works that nobody asks for
_GUESS_SECONDS = 30.0  # for a model to be there, of which nothing is known yet


class Member:
    """A model of the house.

    Attributes:
        uses: Requests that have it, or wait for it; `inside` are those that have it.
        fresh: It has come for those who wait, of whom none has it yet.
        last: When it was asked for last, by the monotonic clock.
        yields: It is to make room: who comes waits until it is its turn again.
        keep_alive: Seconds that it stays without being asked for; None is for ever. A request may say otherwise.
        seconds: What it took to be there, by the state that it came from.
    """

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.state: State = "unloaded"
        self.app: Starlette | None = None
        self.uses, self.inside, self.last = 0, 0, 0.0
        self.yields = self.fresh = False
        self.keep_alive = resident.keep_alive
        self.seconds: dict[str, float] = {}
        self.coming: asyncio.Task[None] | None = None
        self.since = 0.0  # when it began to come
        self.life: asyncio.Task[None] | None = None
        self.leave = asyncio.Event()

    @property
    def name(self) -> str:
        return self.resident.name

    @property
    def awake(self) -> bool:
        return self.state == "ready"

    @property
    def busy(self) -> bool:
        """Whether somebody has it, is about to, or has left something running in the background."""
        running = self.front is not None and self.front.drain.working
        return self.inside > 0 or running or (self.fresh and self.uses > 0)

    @property
    def chores(self) -> bool:
        """Whether it works through something that asks for it again and again: batches."""
        return self.front is not None and bool(self.front.chores)

    @property
    def front(self) -> Front | None:
        return None if self.app is None else self.app.state.front

    @property
    def estimate(self) -> float:
        """Seconds until it should be there."""
        whole = self.seconds.get("asleep" if self.state in ("asleep", "waking") else "unloaded", _GUESS_SECONDS)
        return max(1.0, whole - (monotonic() - self.since if self.coming is not None else 0.0))

    @property
    def expires(self) -> float | None:
        """When it goes if nobody asks, in seconds since the epoch; None is never."""
        if self.keep_alive is None or self.resident.pinned:
            return None
        return time() + max(0.0, self.last + self.keep_alive - monotonic())


class House:
    """Who is there, and how others come. `most` have the device at once; `sleeps`: who makes room sleeps instead of ending;
    requests wait for `wait_seconds` at most."""

    def __init__(
        self,
        residents: Sequence[Resident],
        open: Opening,
        *,
        most: int | None = None,
        sleeps: bool = True,
        wait_seconds: float = 300.0,
    ) -> None:
        self.members = [Member(one) for one in residents]
        self._open, self._sleeps, self._wait = open, sleeps, wait_seconds
        self._most = len(self.members) if most is None else most
        self._turn = asyncio.Lock()  # one at a time comes or goes
        self._idle = asyncio.Event()  # somebody may have nothing to do any more
        self._timers: dict[Member, asyncio.TimerHandle] = {}
        self._going: set[asyncio.Task[None]] = set()
        self.moves = {"loads": 0, "wakes": 0, "sleeps": 0, "unloads": 0}

    async def begin(self) -> None:
        """Have those that are pinned there. Raises SapwoodError where one cannot be."""
        for member in self.members:
            if member.resident.pinned:
                await self._come(member)

    async def close(self) -> None:
        """End all engines."""
        for timer in self._timers.values():
            timer.cancel()
        tasks = [*self._going, *(one.coming for one in self.members if one.coming is not None)]
        if tasks:
            await end(*tasks)
        for member in self.members:
            await self._unload(member)

    def find(self, name: str | None) -> Member:
        """By one of its names; the first without one. Raises RequestError (404)."""
        if not name:
            return self.members[0]
        bare = name.partition(":")[0]  # behind it Ollama's `latest`, or an adapter
        found = next((one for one in self.members if name in one.resident.names), None)
        found = found or next((one for one in self.members if bare in one.resident.names), None)
        if found is None:
            there = ", ".join(repr(one.name) for one in self.members)
            raise RequestError(
                f"The model {name!r} does not exist; this server has {there}.",
                param="model",
                status=404,
                code="model_not_found",
            )
        return found

    @contextlib.asynccontextmanager
    async def using(self, member: Member) -> AsyncIterator[Starlette]:
        """The application of a model, or of its fallback, which stays for as long as the context lasts.

        Raises Overloaded where it would take too long, and what it cannot be loaded for.
        """
        try:
            app = await self._there(member)
        except Overloaded:
            raise
        except SapwoodError as error:
            if member.resident.fallback is None:
                raise EngineDead(f"The model {member.name!r} cannot be loaded: {error}", retry_after=5.0) from error
            other = self.find(member.resident.fallback)
            log.warning("%s answers for %s: %s", other.name, member.name, error)
            async with self.using(other) as app:
                yield app
            return
        member.inside, member.fresh = member.inside + 1, False
        try:
            yield app
        finally:
            member.inside -= 1
            self._leave(member)

    async def unload(self, member: Member, *, sleeps: bool = False) -> None:
        """Have it go as soon as it has nothing to do."""
        async with self._turn:
            member.yields = member.awake
            while member.busy:
                await self._something(1.0)
            await self._go(member, sleeps=sleeps)
            member.yields = False

    # -- coming ---------------------------------------------------------------------------------------------------

    async def _there(self, member: Member) -> Starlette:
        """Counts a use, which `_leave` ends."""
        member.uses += 1
        member.last = monotonic()
        if (timer := self._timers.pop(member, None)) is not None:
            timer.cancel()
        until = monotonic() + self._wait
        try:
            while not (member.awake and (member.fresh or not member.yields)):
                if (coming := member.coming) is None or coming.done():
                    member.since = monotonic()
                    member.coming = coming = asyncio.create_task(self._come(member))
                left = until - monotonic()
                if member.estimate > left:
                    raise Overloaded(
                        f"The model {member.name!r} is not there yet, and will not be in time.",
                        retry_after=member.estimate,
                    )
                await asyncio.wait([coming], timeout=left)
                if coming.done():
                    member.coming = None if member.coming is coming else member.coming
                    coming.result()  # all who have waited for it hear what became of it
            assert member.app is not None
            return member.app
        except BaseException:
            self._leave(member)
            raise

    async def _come(self, member: Member) -> None:
        async with self._turn:
            if member.awake:
                member.yields = False
                return
            await self._make_room()
            began, before = monotonic(), member.state
            try:
                if before == "asleep":
                    member.state = "waking"
                    assert member.front is not None
                    await wake(member.front)
                    self.moves["wakes"] += 1
                else:
                    member.state = "loading"
                    await self._load(member)
                    self.moves["loads"] += 1
            except BaseException:
                await self._unload(member)
                raise
            member.state, member.seconds[before], member.fresh = "ready", monotonic() - began, True
            log.info("%s is there after %.1f s", member.name, monotonic() - began)

    async def _load(self, member: Member) -> None:
        ready: asyncio.Future[Starlette] = asyncio.get_running_loop().create_future()
        member.leave.clear()
        member.life = asyncio.create_task(self._live(member, ready))
        both: list[asyncio.Future[Any]] = [ready, member.life]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            member.life.result()
        member.app = ready.result()

    async def _live(self, member: Member, ready: asyncio.Future[Starlette]) -> None:
        """Until it is to leave, or has lost its engine for good."""
        async with self._open(member.resident) as app:
            front: Front = app.state.front
            await front.open()
            self._watch(member, front)
            ready.set_result(app)
            lost = getattr(front.engine, "lost", None) or asyncio.Event()
            ends = [asyncio.create_task(event.wait()) for event in (member.leave, lost)]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(*ends)
                await front.close()
                member.state, member.app = "unloaded", None

    # -- going ----------------------------------------------------------------------------------------------------

    async def _make_room(self) -> None:
        """Wait until one more may be there. The turn is ours."""
        patience = monotonic() + PATIENCE_SECONDS
        while len(there := [one for one in self.members if one.awake]) >= self._most:
            able = sorted((one for one in there if not one.resident.pinned), key=lambda one: one.last)
            free = next((one for one in able if not one.busy and (one.yields or not (one.uses or one.chores))), None)
            if free is not None:
                await self._go(free, sleeps=self._sleeps)
                free.yields = False
                if free.chores:
                    self._begin(self._again(free))
                continue
            if not able:
                raise Overloaded("All models that are there are pinned; raise --max-loaded-models.")
            left = patience - monotonic()
            if left <= 0:
                able[0].yields = True  # those that it has it finishes; who comes waits
            await self._something(max(0.05, min(left, 1.0)))

    async def _something(self, seconds: float) -> None:
        """Wait until a request has ended, so long at most."""
        self._idle.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def _go(self, member: Member, *, sleeps: bool) -> None:
        front = member.front
        if not sleeps or front is None or not member.awake:
            await self._unload(member)
            return
        member.state = "asleep"  # now: who comes while it falls asleep waits for its turn
        level: Literal[1, 2] = 1 if rules_of(front.facts.device).own_memory else 2
        try:
            await sleep(front, level=level)
        except RequestError:
            await sleep(front, level=1)  # its weights are those of an update
        except EngineDead:
            await self._unload(member)
            return
        self.moves["sleeps"] += 1
        log.info("%s sleeps", member.name)

    async def _unload(self, member: Member) -> None:
        if (life := member.life) is not None:
            member.life, member.state = None, "unloaded"
            if member.app is None:
                life.cancel()  # amid its start, in which it looks at nothing else
            member.leave.set()
            await asyncio.wait([life])
            if not life.cancelled() and (error := life.exception()) is not None:
                log.debug("%s has ended: %s", member.name, error)
            self.moves["unloads"] += 1
            log.info("%s is unloaded", member.name)
        member.state, member.app = "unloaded", None

    def _watch(self, member: Member, front: Front) -> None:
        """A sleeper whose engine dies ends: another in its place would have memory that is not its turn's."""

        def changed() -> None:
            if member.state == "asleep":
                self._begin(self._lose(member))

        front.engine.changed = changed

    async def _lose(self, member: Member) -> None:
        async with self._turn:
            if member.state == "asleep":
                log.warning("the engine of %s has ended in its sleep", member.name)
                await self._unload(member)

    def _leave(self, member: Member) -> None:
        member.uses -= 1
        member.last = monotonic()
        self._idle.set()
        if not member.uses:
            self.expire(member)

    def expire(self, member: Member) -> None:
        """Have it go when its time is over, counted from when it was asked for last."""
        if (timer := self._timers.pop(member, None)) is not None:
            timer.cancel()
        if member.keep_alive is None or member.resident.pinned or member.uses:
            return
        self._time(member, max(0.0, member.last + member.keep_alive - monotonic()))

    def _time(self, member: Member, seconds: float) -> None:
        self._timers[member] = asyncio.get_running_loop().call_later(seconds, self._expired, member)

    def _expired(self, member: Member) -> None:
        del self._timers[member]
        self._begin(self._expire(member))

    async def _expire(self, member: Member) -> None:
        async with self._turn:
            if member.uses or member in self._timers or member.state == "unloaded":
                return  # somebody has asked for it meanwhile
            if member.busy or member.chores:
                self._time(member, max(_LOOK_SECONDS, member.keep_alive or 0.0))
                return
            await self._go(member, sleeps=self._sleeps and bool(member.keep_alive))

    async def _again(self, member: Member) -> None:
        """It has made room amid a batch: have it there again as soon as there is room."""
        with contextlib.suppress(SapwoodError):
            async with self.using(member):
                pass

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        going = asyncio.create_task(work)
        self._going.add(going)
        going.add_done_callback(self._going.discard)
