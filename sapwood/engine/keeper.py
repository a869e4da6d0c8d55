"""Keeping an engine: its process is begun, followed until it ends or hangs, and begun anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import msgspec
import zmq

from sapwood.base.errors import EngineDead, UserError
from sapwood.base.wire import Facts, Failed, FromEngine, Ready
from sapwood.config import Config
from sapwood.engine.client import AsyncEngine
from sapwood.engine.line import Line, Start
from sapwood.engine.spawn import Child, spawn
from sapwood.engine.tasks import end

log = logging.getLogger(__name__)

EXIT_SECONDS = 5.0  # for an engine that is told to end, before it is killed
SILENCE_SECONDS = 30.0  # an engine that has something to do says so about every second
START_SECONDS = 60.0  # for another one to become ready, or five times as long as the last one took
LOOK_SECONDS = 1.0
RESTART_SECONDS = 600.0  # in which so many restarts are allowed
_PAUSES = (0.0, 1.0, 3.0, 10.0)  # before the first restart within that time, the second, and so on


@contextlib.asynccontextmanager
async def start(config: Config, child: Child | None = None) -> AsyncIterator[AsyncEngine]:
    """Run an engine for as long as the context lasts; entered when the engine is ready.

    `child` is one that `spawn` has begun, which is told here what it is to be; it has ended when the context has. One that
    ends or hangs later is followed by another, as often as the configuration says.
    Raises ModelError or ConfigError (as UserError) if it cannot start because of what the user asked, else EngineDead.
    """
    ready: asyncio.Future[AsyncEngine] = asyncio.get_running_loop().create_future()
    keeping = asyncio.create_task(_keep(config, child, ready))
    both: list[asyncio.Future[Any]] = [ready, keeping]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            keeping.result()  # raises why it could not start
        yield ready.result()
    finally:
        await end(keeping)
        if ready.done():
            ready.result().die("the engine was shut down")


async def _keep(config: Config, child: Child | None, ready: asyncio.Future[AsyncEngine]) -> None:
    """Raises what the first process cannot start for; of later ones the engine is told."""
    engine: AsyncEngine | None = None
    restarts, took = _Restarts(config.server.max_engine_restarts), 0.0
    while True:
        began = monotonic()
        try:
            async with _life(config, child, None if engine is None else max(START_SECONDS, 5 * took)) as life:
                if engine is None:
                    live = life.facts.max_num_seqs + config.scheduler.max_waiting
                    engine = AsyncEngine(
                        life.line.send, life.facts, max_live=live, shut=config.server.asleep == "refuse"
                    )
                    ready.set_result(engine)
                else:
                    engine.revive(life.line.send, life.facts)
                    log.warning("the engine is back after %.1f s", monotonic() - began)
                took = monotonic() - began
                why = await _follow(engine, life, limit=config.server.watchdog_seconds)
                pause = restarts.pause(monotonic())
                engine.die(why, None if pause is None else pause + took)
        except Exception as error:
            if engine is None:
                raise
            reason = "it has not become ready" if isinstance(error, TimeoutError) else error
            why, pause = f"the engine could not be started again: {reason}", restarts.pause(monotonic())
            engine.die(why, None if pause is None else pause + took)
        if pause is None:
            return
        log.error("%s; it is started again (%d of %d)", why, len(restarts.times), restarts.most)
        await asyncio.sleep(pause)
        child = None


@dataclass
class _Restarts:
    """How often an engine may be started again."""

    most: int
    times: deque[float] = field(default_factory=deque)

    def pause(self, now: float) -> float | None:
        """Count one more, and say how long to wait before it; None if there have been enough."""
        while self.times and now - self.times[0] > RESTART_SECONDS:
            self.times.popleft()
        if len(self.times) >= self.most:
            return None
        self.times.append(now)
        return _PAUSES[min(len(self.times), len(_PAUSES)) - 1]


@dataclass(frozen=True)
class _Life:
    """One process that is ready."""

    child: Child
    line: Line
    ended: asyncio.Task[int]
    facts: Facts


@contextlib.asynccontextmanager
async def _life(config: Config, child: Child | None, limit: float | None) -> AsyncIterator[_Life]:
    """Entered when the process is ready, which must be within `limit` seconds; left when it has ended."""
    with contextlib.ExitStack() as stack:  # left without waiting for anything, so that no interrupt can cut it off
        child = stack.enter_context(child or spawn())
        private = tempfile.TemporaryDirectory(prefix="sapwood-", ignore_cleanup_errors=True)  # mode 0700
        folder = stack.enter_context(private)
        line = stack.enter_context(contextlib.closing(Line(folder)))
        child.tell(msgspec.msgpack.encode(Start(config, folder)))
        ended = asyncio.create_task(_end_of(child))
        try:
            async with asyncio.timeout(limit):
                ready = await _await_ready(line, ended)
            yield _Life(child, line, ended, ready.facts)
        finally:
            child.close()
            await asyncio.wait([ended], timeout=EXIT_SECONDS)  # one that has not gone by then is killed


async def _await_ready(line: Line, ended: asyncio.Task[int]) -> Ready:
    first = asyncio.create_task(_first(line))
    try:
        await asyncio.wait([first, ended], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([first], timeout=0.5)  # its last words may be on their way still
    finally:
        first.cancel()
    if not first.done():
        raise EngineDead(_how_it_ended(ended.result()))
    match first.result():
        case Failed(message, user_error):
            raise UserError(message) if user_error else EngineDead(message)
        case Ready() as ready:
            await _opened(line, ended)
            return ready
        case other:
            raise AssertionError(f"an engine begins with Ready or Failed, not {other}")


async def _opened(line: Line, ended: asyncio.Task[int]) -> None:
    """The two sockets connect one after the other: what is sent in between would find nobody."""
    while True:
        if line.open or ended.done():
            return
        await asyncio.sleep(0.001)


async def _first(line: Line) -> FromEngine:
    arrived = asyncio.Event()
    with line.calling(arrived.set):
        while not (messages := line.receive()):
            await arrived.wait()
            arrived.clear()
    return messages[0]


async def _follow(engine: AsyncEngine, life: _Life, *, limit: float) -> str:
    """Hand on what the engine says until it ends, hangs, or cannot be followed any more: whatever is wrong, nobody waits
    for ever. Returns why; one that runs still has been killed."""
    handing = asyncio.create_task(_hand_on(engine, life.line, life.ended))
    watching = asyncio.create_task(_hung(engine, limit))
    try:
        await asyncio.wait([handing, watching], return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            life.child.kill()
            return watching.result()
        return handing.result() or _how_it_ended(life.ended.result())
    except Exception as error:
        log.exception("the engine cannot be followed any more")
        life.child.kill()
        unread = isinstance(error, msgspec.DecodeError | zmq.ZMQError)
        return f"what the engine says cannot be read: {error}" if unread else f"{type(error).__name__}: {error}"
    finally:
        await end(handing, watching)


async def _hand_on(engine: AsyncEngine, line: Line, ended: asyncio.Task[int]) -> str:
    """Returns the engine's last words, if it had any.

    All steps that have arrived are handed on together: a front that falls behind sends more tokens at a time.
    """
    last_words = ""
    arrived = asyncio.Event()
    ended.add_done_callback(lambda _: arrived.set())
    with line.calling(arrived.set):
        while True:
            over = ended.done()
            messages = line.receive()
            engine.receive(messages)
            last_words = next((m.message for m in messages if isinstance(m, Failed)), last_words)
            if messages:
                await asyncio.sleep(0)
            elif over:
                return last_words
            else:
                await arrived.wait()
                arrived.clear()


async def _hung(engine: AsyncEngine, limit: float) -> str:
    """Returns, saying why, when the engine has to be taken for one that hangs: its step has lasted longer than `limit`
    seconds, or somebody waits for it and it says nothing. Nobody is woken while nobody waits for it."""
    vitals, silence = engine.vitals, min(SILENCE_SECONDS, limit)
    suspected = 0.0
    while True:
        await engine.awaited()
        if vitals.step_seconds > limit:
            return f"the engine hangs: a step has not ended within {limit:g} s (--watchdog-timeout)"
        if vitals.silent_seconds <= silence:
            suspected = 0.0
        elif suspected == vitals.heard:  # twice: what came while this process itself stood still has been read by now
            return f"the engine hangs: nothing has been heard of it for {vitals.silent_seconds:.0f} s"
        else:
            suspected = vitals.heard
        await asyncio.sleep(min(LOOK_SECONDS, silence / 4))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"the engine process ended with exit code {code}; its last lines on standard error say more"
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"the engine process was ended by {names.get(-code, f'signal {-code}')}{hint}"


async def _end_of(child: Child) -> int:
    """The exit code of a child, minus the signal that ended it, as soon as there is one."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        child.wait()
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, daemon=True).start()
    await ended.wait()
    return child.wait()
