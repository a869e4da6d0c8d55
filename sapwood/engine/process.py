"""The engine in a process of its own: how a front starts it, talks to it and notices its end.

The front binds two sockets in a private folder; the engine connects. The configuration goes through the engine's
standard input, which stays open: when the front is gone, however it went, the engine reads its end there and goes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import msgspec
import zmq
import zmq.asyncio

from sapwood.base.errors import EngineDead, UserError
from sapwood.base.wire import Abort, Control, Deltas, Failed, FromEngine, Ready, Reply, Submit, ToEngine
from sapwood.config import Config
from sapwood.engine.client import AsyncEngine
from sapwood.engine.loop import Engine

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
EXIT_SECONDS = 5.0


class Start(msgspec.Struct, frozen=True):
    """What an engine process is told on its standard input."""

    config: Config
    folder: str


# -- the front's side -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def start(config: Config) -> AsyncIterator[AsyncEngine]:
    """Run an engine process for as long as the context lasts; entered when the engine is ready.

    Raises ModelError or ConfigError (as UserError) if it cannot start because of what the user asked, else EngineDead.
    """
    folder = Path(tempfile.mkdtemp(prefix="sapwood-"))  # private: mode 0700
    context = zmq.asyncio.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    process = None
    try:
        for socket, name in ((inbox, "up"), (outbox, "down")):
            socket.set(zmq.LINGER, 0)
            socket.set_hwm(0)
            socket.bind(f"ipc://{folder / name}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sapwood.engine.process", stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        told = msgspec.msgpack.encode(Start(config, str(folder)))
        process.stdin.write(len(told).to_bytes(4, "big") + told)
        ended = asyncio.create_task(process.wait())
        ready = await _await_ready(inbox, ended)
        encoder = msgspec.msgpack.Encoder()

        async def send(message: ToEngine) -> None:
            await _send(outbox, encoder.encode(message))

        live = ready.facts.max_num_seqs + config.scheduler.max_waiting
        engine = AsyncEngine(send, ready.facts, max_live=live)
        following = asyncio.create_task(_follow(engine, inbox, ended))
        try:
            yield engine
        finally:
            following.cancel()
            engine.die("the engine was shut down")
    finally:
        if process is not None:
            await _stop(process)
        context.destroy(linger=0)
        shutil.rmtree(folder, ignore_errors=True)


async def _send(outbox: zmq.asyncio.Socket, data: bytes) -> None:
    """Send without waiting: queues are unbounded, so only a missing engine could make us wait, and that for ever."""
    try:
        await outbox.send(data, zmq.DONTWAIT)
    except zmq.Again:
        raise EngineDead("the engine process is gone") from None


async def _await_ready(inbox: zmq.asyncio.Socket, ended: asyncio.Task[int]) -> Ready:
    decoder = msgspec.msgpack.Decoder(FromEngine)
    message = asyncio.ensure_future(inbox.recv())
    await asyncio.wait([message, ended], return_when=asyncio.FIRST_COMPLETED)
    if not message.done():
        # Its last words may be on their way still.
        await asyncio.wait([message], timeout=0.5)
    if not message.done():
        message.cancel()
        raise EngineDead(_how_it_ended(ended.result()))
    first = decoder.decode(message.result())
    if isinstance(first, Failed):
        raise UserError(first.message) if first.user_error else EngineDead(first.message)
    assert isinstance(first, Ready)
    return first


async def _follow(engine: AsyncEngine, inbox: zmq.asyncio.Socket, ended: asyncio.Task[int]) -> None:
    """Hand on what the engine says until it ends, or cannot be understood any more."""
    try:
        last_words = await _hand_on(engine, inbox, ended)
        engine.die(last_words or _how_it_ended(ended.result()))
    except (msgspec.DecodeError, zmq.ZMQError) as error:
        log.exception("the engine cannot be followed any more")
        engine.die(f"what the engine says cannot be read: {error}")


async def _hand_on(engine: AsyncEngine, inbox: zmq.asyncio.Socket, ended: asyncio.Task[int]) -> str:
    """Returns the engine's last words, if it had any."""
    decoder = msgspec.msgpack.Decoder(FromEngine)
    last_words = ""
    message = asyncio.ensure_future(inbox.recv())
    while True:
        await asyncio.wait([message, ended], return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            message.cancel()
            return last_words
        news = decoder.decode(message.result())
        if isinstance(news, Failed):
            last_words = news.message
        else:
            engine.receive(news)
        message = asyncio.ensure_future(inbox.recv())


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the engine process was ended by {name}{hint}"
    return f"the engine process ended with exit code {code}; its last lines on standard error say more"


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close the engine's standard input, which it takes as its end; kill it if it does not go."""
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), EXIT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


# -- the engine's side ------------------------------------------------------------------------------------------------


class Post:
    """The engine's ends of the two sockets."""

    def __init__(self, folder: str) -> None:
        self._context = zmq.Context()
        self._down, self._up = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        self._down.connect(f"ipc://{folder}/down")
        self._up.connect(f"ipc://{folder}/up")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    def send(self, message: FromEngine) -> None:
        self._up.send(self._encoder.encode(message))

    def receive(self, wait_seconds: float) -> list[ToEngine]:
        """What has arrived; waits for the first message if asked to. A message that cannot be read is dropped, loudly."""
        messages: list[ToEngine] = []
        if wait_seconds and not self._down.poll(int(wait_seconds * 1000)):
            return messages
        with contextlib.suppress(zmq.Again):
            while True:
                data = self._down.recv(zmq.NOBLOCK)
                try:
                    messages.append(self._decoder.decode(data))
                except msgspec.DecodeError:
                    log.exception("a message from the front could not be read")
        return messages

    def close(self) -> None:
        self._context.destroy(linger=1000)


class Service:
    """An engine and its post: takes messages in between steps, sends news after each."""

    def __init__(self, engine: Engine, post: Post, orphaned: threading.Event) -> None:
        self.engine = engine
        self.post = post
        self.orphaned = orphaned
        self._beat = monotonic()
        self._audited = True

    def run(self) -> None:
        while not self.orphaned.is_set():
            idle = self.engine.idle
            messages = self.post.receive(HEARTBEAT_SECONDS / 2 if idle else 0)
            if idle and not messages and not self._audited:
                # Only now: the audit of a large cache would hold up a request that follows the last one at once.
                self.engine.audit()
                self._audited = True
                self._heartbeat()
            for message in messages:
                self._take(message)
            if not self.engine.idle:
                self._audited = False
                for news in self.engine.step():
                    if news.ids or news.deltas:
                        self.post.send(news)
            if monotonic() - self._beat > HEARTBEAT_SECONDS:
                self._heartbeat()

    def _take(self, message: ToEngine) -> None:
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
    told = msgspec.msgpack.decode(_read_start(), type=Start)
    logging.basicConfig(level=told.config.server.log_level.upper(), format="engine: %(levelname)s %(message)s")
    serving, orphaned = threading.Event(), threading.Event()
    threading.Thread(target=_watch_front, args=(serving, orphaned), daemon=True).start()
    post = Post(told.folder)
    try:
        from sapwood.engine.launch import launch  # imports torch, so not before the front could be told of a failure

        engine, facts = launch(told.config)
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


def _read_start() -> bytes:
    stdin = sys.stdin.buffer
    return stdin.read(int.from_bytes(stdin.read(4), "big"))


def _watch_front(serving: threading.Event, orphaned: threading.Event) -> None:
    """End this process soon after its front: between two steps, or at once while it only loads."""
    # Not sys.stdin: a thread that waits in it holds its lock, and the interpreter could not end.
    while os.read(0, 1):
        pass
    orphaned.set()
    if serving.is_set():
        threading.Event().wait(EXIT_SECONDS - 1)  # a step that never ends must not keep an orphan alive
    os._exit(1)


if __name__ == "__main__":
    main()
