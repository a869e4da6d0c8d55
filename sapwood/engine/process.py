"""The engine in a process of its own.

Its configuration comes through its standard input, which stays open: when the front is gone, however it went, the engine
reads its end there and goes too.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sapwood.engine import lean

    lean.thin_torch()

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from sapwood.base.errors import UserError
from sapwood.base.wire import Abort, Control, Deltas, Failed, Ready, Reply, Submit, ToEngine
from sapwood.config import Config
from sapwood.engine import lean
from sapwood.engine.line import Post, Start
from sapwood.engine.loop import Engine
from sapwood.engine.pulse import Pulse
from sapwood.engine.spawn import read_told
from sapwood.observe.log import set_up_logging

if TYPE_CHECKING:
    from sapwood.engine.launch import Launched

log = logging.getLogger("sapwood.engine.process")  # this module runs as __main__

HEARTBEAT_SECONDS = 1.0
EXIT_SECONDS = 4.0
AUDIT_SECONDS = 0.5  # of rest before the books are audited
INTAKE_SECONDS = 0.002  # for arrivals between two steps, so that a crowd of them does not hold up running requests
_STDIN = 0


class Service:
    """An engine and its post: takes messages in between steps, sends news after each, and uses idle time."""

    def __init__(self, engine: Engine, post: Post, pulse: Pulse, orphaned: threading.Event) -> None:
        self.engine = engine
        self.post = post
        self.pulse = pulse
        self.orphaned = orphaned
        self._beat = monotonic()
        self._audited, self._told = True, False  # since there was work, or a message
        self._tidy = False  # there is nothing (more) to do in idle time

    def run(self) -> None:
        while not self.orphaned.is_set():
            self.iterate()

    def iterate(self) -> None:
        """Take in what has arrived, then a step; without either, some idle work, or rest."""
        self.pulse.turn()
        taken = self._take_in()
        if not self.engine.idle:
            self._audited = self._tidy = self._told = False
            for news in self.engine.step():
                if news.ids or news.deltas:
                    self.post.send(news)
            if monotonic() - self._beat > HEARTBEAT_SECONDS:
                self._heartbeat()
        elif taken:
            self._tidy = self._told = False
        else:
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        """One piece of work, short enough for a request that comes meanwhile; without any, rest until something comes."""
        if not self._audited:
            # Only when no request has followed the last one at once: the audit of a large cache takes a while.
            if not self._rest(AUDIT_SECONDS):
                self.engine.audit()
                self._audited = True
        elif not self._told:
            self._heartbeat()
        elif not self._tidy:
            self._tidy = not self.engine.tidy()
        elif self.engine.occupied:  # it stands still, and whoever waits for it is to hear that it lives
            self._told = self._rest(HEARTBEAT_SECONDS)
        else:
            self._rest()

    def _rest(self, seconds: float | None = None) -> bool:
        """Wait, so long at most; whether something has come."""
        self.pulse.rest()
        return self.post.wait(seconds)

    def _take_in(self) -> int:
        """Returns how many messages were taken in; the rest of a crowd waits for the next turn."""
        taken, until = 0, 0.0
        for message in self.post.receive():
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
            case Control(id, what, about):
                self.post.send(Reply(id, self.engine.control(what, about)))

    def _heartbeat(self) -> None:
        self._beat, self._told = monotonic(), True
        self.post.send(self.engine.stats())


def main() -> None:
    # The front decides when we end: a Ctrl-C or SIGTERM to the whole group must not cut off a drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lean.begin()
    launch = _launcher()
    told = msgspec.msgpack.decode(read_told(), type=Start)
    server = told.config.server
    set_up_logging(server.log_level, format=server.log_format, process=_name(told.config), whole=True)
    serving, orphaned = threading.Event(), threading.Event()
    threading.Thread(target=_watch_front, args=(serving, orphaned, told.folder), daemon=True).start()
    post = Post(told.folder, end=_STDIN)
    try:
        engine, facts, _ = launch(told.config)
        lean.trim()
        serving.set()
        post.send(Ready(facts))
        log.debug("ready after %.1f s", sum(facts.seconds_to_ready.values()))
        with Pulse(post.beats(), lambda: engine.counters["steps"]) as pulse:
            Service(engine, post, pulse, orphaned).run()
        engine.shutdown()
    except UserError as error:
        post.send(Failed(str(error), user_error=True))
        raise SystemExit(2) from None
    except Exception as error:
        post.send(Failed(f"{type(error).__name__}: {error}", user_error=False))
        raise
    finally:
        post.close()


def _name(config: Config) -> str:
    """What logs call this process."""
    return "engine" if config.parallel.data_parallel_size == 1 else f"engine {config.parallel.replica}"


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


def _watch_front(serving: threading.Event, orphaned: threading.Event, folder: str) -> None:
    """End this process soon after its front: between two steps, or at once while it only loads."""
    # Not sys.stdin: a thread that waits in it holds its lock, and the interpreter could not end.
    while os.read(_STDIN, 1):
        pass
    # First, since the process may end with what comes next. A front that was killed could not.
    shutil.rmtree(folder, ignore_errors=True)
    orphaned.set()
    if serving.is_set():
        threading.Event().wait(EXIT_SECONDS)  # a step that never ends must not keep an orphan alive
    os._exit(1)


if __name__ == "__main__":
    main()
