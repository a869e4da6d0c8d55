"""The engine in a process of its own: how a front starts it, talks to it and notices its end.

The front binds two sockets in a private folder; the engine connects. The configuration goes through the engine's
standard input, which stays open: when the front is gone, however it went, the engine reads its end there and goes too.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sapwood.engine import lean

    lean.thin_torch()

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
import zmq

from sapwood.base.errors import EngineDead, UserError
from sapwood.base.wire import Abort, Control, Deltas, Failed, FromEngine, Lists, Ready, Reply, Sharing, Submit, ToEngine
from sapwood.config import Config
from sapwood.engine import lean
from sapwood.engine.client import AsyncEngine
from sapwood.engine.loop import Engine
from sapwood.engine.spawn import Child, spawn

if TYPE_CHECKING:
    from sapwood.engine.launch import Launched

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
EXIT_SECONDS = 5.0
INTAKE_SECONDS = 0.002  # for arrivals between two steps, so that a crowd of them does not hold up running requests
MOST_AT_ONCE = 64  # messages, so that a front that has fallen far behind still turns to its clients in between


class Start(msgspec.Struct, frozen=True):
    """What an engine process is told on its standard input."""

    config: Config
    folder: str


# -- the front's side -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def start(config: Config, child: Child | None = None) -> AsyncIterator[AsyncEngine]:
    """Run an engine process for as long as the context lasts; entered when the engine is ready.

    `child` is one that `spawn` has begun, which is told here what it is to be; it has ended when the context has.
    Raises ModelError or ConfigError (as UserError) if it cannot start because of what the user asked, else EngineDead.
    """
    with contextlib.ExitStack() as stack:  # left without waiting for anything, so that no interrupt can cut it off
        child = stack.enter_context(child or spawn())
        private = tempfile.TemporaryDirectory(prefix="sapwood-", ignore_cleanup_errors=True)  # mode 0700
        folder = stack.enter_context(private)
        line = stack.enter_context(contextlib.closing(Line(folder)))
        child.tell(msgspec.msgpack.encode(Start(config, folder)))
        ended = asyncio.create_task(_end_of(child))
        try:
            async with _speaking(config, line, ended) as engine:
                yield engine
        finally:
            child.close()
            await asyncio.wait([ended], timeout=EXIT_SECONDS)  # one that has not gone by then is killed


@contextlib.asynccontextmanager
async def _speaking(config: Config, line: Line, ended: asyncio.Task[int]) -> AsyncIterator[AsyncEngine]:
    """The engine at the other end of the line, once it is ready."""
    ready = await _await_ready(line, ended)
    live = ready.facts.max_num_seqs + config.scheduler.max_waiting
    engine = AsyncEngine(line.send, ready.facts, max_live=live)
    following = asyncio.create_task(_follow(engine, line, ended))
    try:
        yield engine
    finally:
        following.cancel()
        await asyncio.wait([following])
        engine.die("the engine was shut down")


class Line:
    """The front's ends of the two sockets. Nothing here waits: queues are unbounded, as what is in them is not."""

    def __init__(self, folder: str) -> None:
        self._context = zmq.Context()
        self._up, self._down = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        for socket, name in ((self._up, "up"), (self._down, "down")):
            socket.set(zmq.LINGER, 0)
            socket.set_hwm(0)
            socket.bind(f"ipc://{folder}/{name}")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._lists: Lists | None = None  # the last that were sent

    def send(self, message: ToEngine) -> None:
        """Raises EngineDead when nobody is there to take it."""
        try:
            if not isinstance(message, Submit) or (lists := Lists.of(message.params)) is None:
                self._down.send(self._encoder.encode(message), zmq.DONTWAIT)
                return
            if lists != self._lists:
                self._down.send(self._encoder.encode(lists), zmq.DONTWAIT)
                self._lists = lists
            self._down.send(self._encoder.encode(Sharing.of(message)), zmq.DONTWAIT)
        except zmq.ZMQError:
            raise EngineDead("the engine process is gone") from None

    def receive(self) -> list[FromEngine]:
        """What has arrived, the oldest MOST_AT_ONCE messages of it; raises DecodeError for what cannot be read."""
        messages: list[FromEngine] = []
        with contextlib.suppress(zmq.Again):
            while len(messages) < MOST_AT_ONCE:
                messages.append(self._decoder.decode(self._up.recv(zmq.DONTWAIT)))
        return messages

    @contextlib.contextmanager
    def calling(self, arrived: Callable[[], None]) -> Iterator[None]:
        """Call `arrived` when something has come since `receive` last returned nothing, perhaps more than once."""
        # Not the socket itself but a descriptor that becomes readable with it; receiving makes it unreadable again.
        loop, descriptor = asyncio.get_running_loop(), int(self._up.get(zmq.FD))
        loop.add_reader(descriptor, arrived)
        try:
            yield
        finally:
            loop.remove_reader(descriptor)

    def close(self) -> None:
        self._context.destroy(linger=0)


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
            return ready
        case other:
            raise AssertionError(f"an engine begins with Ready or Failed, not {other}")


async def _first(line: Line) -> FromEngine:
    arrived = asyncio.Event()
    with line.calling(arrived.set):
        while not (messages := line.receive()):
            await arrived.wait()
            arrived.clear()
    return messages[0]


async def _follow(engine: AsyncEngine, line: Line, ended: asyncio.Task[int]) -> None:
    """Hand on what the engine says until it ends, or cannot be followed any more: whatever is wrong, nobody waits for ever."""
    try:
        last_words = await _hand_on(engine, line, ended)
        engine.die(last_words or _how_it_ended(ended.result()))
    except Exception as error:
        log.exception("the engine cannot be followed any more")
        unread = isinstance(error, msgspec.DecodeError | zmq.ZMQError)
        why = f"what the engine says cannot be read: {error}" if unread else f"{type(error).__name__}: {error}"
        engine.die(why)


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


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the engine process was ended by {name}{hint}"
    return f"the engine process ended with exit code {code}; its last lines on standard error say more"


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


# -- the engine's side ------------------------------------------------------------------------------------------------


class Post:
    """The engine's ends of the two sockets."""

    def __init__(self, folder: str) -> None:
        self._context = zmq.Context()
        self._down, self._up = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        self._up.set_hwm(0)  # a front that has stopped reading must not stop the loop
        self._down.connect(f"ipc://{folder}/down")
        self._up.connect(f"ipc://{folder}/up")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine | Lists | Sharing] = msgspec.msgpack.Decoder(
            ToEngine | Lists | Sharing
        )
        self._lists: Lists | None = None

    def send(self, message: FromEngine) -> None:
        self._up.send(self._encoder.encode(message))

    def receive(self, wait_seconds: float) -> Iterator[ToEngine]:
        """What has arrived; waits for the first message if asked to. A message that cannot be read is dropped, loudly."""
        if wait_seconds:
            self._down.poll(int(wait_seconds * 1000))
        while int(self._down.get(zmq.EVENTS)) & zmq.POLLIN:
            try:
                message = self._decoder.decode(self._down.recv())
            except msgspec.DecodeError:
                log.exception("a message from the front could not be read")
                continue
            match message:
                case Lists():
                    self._lists = message
                case Sharing():
                    assert self._lists is not None
                    yield message.whole(self._lists)
                case _:
                    yield message

    def close(self) -> None:
        self._context.destroy(linger=1000)


class Service:
    """An engine and its post: takes messages in between steps, sends news after each, and uses idle time."""

    def __init__(self, engine: Engine, post: Post, orphaned: threading.Event) -> None:
        self.engine = engine
        self.post = post
        self.orphaned = orphaned
        self._beat = monotonic()
        self._audited = True
        self._tidy = False  # there is nothing (more) to do in idle time

    def run(self) -> None:
        while not self.orphaned.is_set():
            self.iterate()

    def iterate(self) -> None:
        """Take in what has arrived, then a step; without either, some idle work."""
        engine = self.engine
        idle = engine.idle
        taken = self._take_in(HEARTBEAT_SECONDS / 2 if idle and self._rested else 0)
        if not engine.idle:
            self._audited = self._tidy = False
            for news in engine.step():
                if news.ids or news.deltas:
                    self.post.send(news)
        elif idle and not taken:
            self._use_idle_time()
        if monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._heartbeat()

    @property
    def _rested(self) -> bool:
        """Whether an idle engine may wait, be it for a message, be it for the time of its audit."""
        return self._tidy or not self._audited

    def _use_idle_time(self) -> None:
        """One piece of work, short enough for a request that comes meanwhile."""
        if not self._audited:
            # Only when no request has followed the last one at once: the audit of a large cache takes a while.
            self.engine.audit()
            self._audited = True
            self._heartbeat()
        elif not self._tidy:
            self._tidy = not self.engine.tidy()

    def _take_in(self, wait_seconds: float) -> int:
        """Returns how many messages were taken in; the rest of a crowd waits for the next turn."""
        taken, until = 0, 0.0
        for message in self.post.receive(wait_seconds):
            self._handle(message)
            taken += 1
            until = until or monotonic() + INTAKE_SECONDS
            if monotonic() > until:
                break
        return taken

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                refused = self.engine.submit(message)
                if refused is not None:
                    self.post.send(Deltas([], [], [refused]))
            case Abort():
                self.engine.abort(message)
            case Control(id, what):
                self.post.send(Reply(id, self.engine.control(what)))

    def _heartbeat(self) -> None:
        self._beat = monotonic()
        self.post.send(self.engine.stats())


def main() -> None:
    # The front decides when we end: a Ctrl-C or SIGTERM to the whole group must not cut off a drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lean.begin()
    launch = _launcher()
    told = msgspec.msgpack.decode(_read_start(), type=Start)
    logging.basicConfig(level=told.config.server.log_level.upper(), format="engine: %(levelname)s %(message)s")
    serving, orphaned = threading.Event(), threading.Event()
    threading.Thread(target=_watch_front, args=(serving, orphaned, told.folder), daemon=True).start()
    post = Post(told.folder)
    try:
        engine, facts, _ = launch(told.config)
        lean.trim()
        serving.set()
        post.send(Ready(facts))
        Service(engine, post, orphaned).run()
        engine.executor.shutdown()
    except UserError as error:
        post.send(Failed(str(error), user_error=True))
        raise SystemExit(2) from None
    except Exception as error:
        post.send(Failed(f"{type(error).__name__}: {error}", user_error=False))
        raise
    finally:
        post.close()


def _launcher() -> Callable[[Config], Launched]:
    """`launch`, which imports torch: before the front has said what is to be launched, if it takes its time.

    If it cannot be imported, calling it raises why, when there is a front to be told of it.
    """
    try:
        from sapwood.engine.launch import launch
    except Exception as error:
        problem = error

        def fail(config: Config) -> Launched:
            raise problem

        return fail
    return launch


def _read_start() -> bytes:
    """Ends this process if the front has gone before it said anything."""
    stdin = sys.stdin.buffer
    size = stdin.read(4)
    told = stdin.read(int.from_bytes(size, "big"))
    if not told:
        raise SystemExit(1)
    return told


def _watch_front(serving: threading.Event, orphaned: threading.Event, folder: str) -> None:
    """End this process soon after its front: between two steps, or at once while it only loads."""
    # Not sys.stdin: a thread that waits in it holds its lock, and the interpreter could not end.
    while os.read(0, 1):
        pass
    # First, since the process may end with what comes next. A front that was killed could not.
    shutil.rmtree(folder, ignore_errors=True)
    orphaned.set()
    if serving.is_set():
        threading.Event().wait(EXIT_SECONDS - 1)  # a step that never ends must not keep an orphan alive
    os._exit(1)


if __name__ == "__main__":
    main()
