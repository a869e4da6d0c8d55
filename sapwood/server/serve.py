"""Running the application: the socket, the signals, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from email.utils import formatdate
from time import time
from typing import Any, Protocol, TypeVar

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from sapwood.base.errors import ConfigError, Stopping
from sapwood.config import Config
from sapwood.server.connection import Limits, connection
from sapwood.server.door import Door
from sapwood.server.operators import Trusting, admin_socket

log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE = 2.0  # seconds for the last words after the drain time is over


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, on uvloop where it is installed."""
    try:
        new_loop = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


def bind(config: Config) -> Door:
    """Take the address to listen on, before anything slow begins. Raises ConfigError saying what to change."""
    return Door(config.server)


class Served(Protocol):
    """An application with a front: `state.front` has `open`, `drain` and `end_all`, as `Front` has them."""

    @property
    def state(self) -> Any: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


async def serve(
    app: Served,
    config: Config,
    *,
    on_ready: Callable[[str], None] | None = None,
    door: Door | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish for up to `drain_seconds`: until they have, others are
    refused, and whoever asks is told that the server ends.

    `on_ready` is called with the server's URL once it listens; `door` comes from `bind` (made here if missing). After
    the drain time the requests that still run end with an error; a second signal ends them at once. Raises
    ConfigError if the address is taken.
    """
    with door or bind(config) as door:
        server = _Server(app, config, door, on_ready)
        # Without TLS a terminal that closes ends the server, as ever.
        renewing = {} if door.tls is None else {signal.SIGHUP: server.renew}
        with _signals({signal.SIGTERM: server.stop, signal.SIGINT: server.stop} | renewing):
            try:
                await server.serve(sockets=[door.sock])
            except OSError as error:
                raise door.refused(error) from error
            finally:
                await server.finish()


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=75,
        http=connection(Limits()),
    )


class _Server(uvicorn.Server):
    """uvicorn, with our way to end."""

    def __init__(self, app: Served, config: Config, door: Door, on_ready: Callable[[str], None] | None) -> None:
        super().__init__(_uvicorn_config(app))
        self.config.load()
        self.config.ssl = door.tls
        self.server_state = _State()
        self._over = asyncio.Event()
        self._app = app
        self._front = app.state.front
        self._admin_path = config.server.admin_socket
        self._held = contextlib.ExitStack()
        self._drain_seconds = config.server.drain_seconds
        self._door = door
        self._on_ready = on_ready
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` listens to them

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self._front.open()
        if self._admin_path is not None:
            self.servers.append(await self._for_operators(self._admin_path))
        log.info("listening on %s", self._door.url)
        if self._on_ready is not None:
            self._on_ready(self._door.url)

    async def main_loop(self) -> None:
        await self._over.wait()  # uvicorn would look ten times a second whether it is

    async def _for_operators(self, path: str) -> asyncio.Server:
        """The same server on a socket whose requests are trusted; it ends with the others."""
        config = _uvicorn_config(Trusting(self._app))
        config.load()
        sock = self._held.enter_context(admin_socket(path))
        log.info("operators: curl --unix-socket %s http://localhost/...", path)
        return await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            sock=sock,
        )

    def stop(self) -> None:
        """Called for each signal: the first drains, the second does not wait."""
        if self._ending is not None:
            self._cut()
            return
        log.info("stopping; running requests have %g s (a second signal ends them at once)", self._drain_seconds)
        self._ending = asyncio.get_running_loop().create_task(self._end())

    def renew(self) -> None:
        """Read again what may change while the server runs."""
        try:
            self._door.renew()
        except ConfigError as error:
            log.error("the old certificate stays: %s", error)

    async def finish(self) -> None:
        """Wait for what was cut off, so that the engine hears of it."""
        if self._ending is not None:
            self._ending.cancel()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=_GRACE)
        self._held.close()

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._front.drain(), self._drain_seconds)
        self._front.end_all(Stopping())
        self._leave()
        await asyncio.sleep(_GRACE)
        self._cut()

    def _leave(self) -> None:
        """Take no more connections, and end when those that are have ended."""
        self.should_exit = True
        self._over.set()

    def _cut(self) -> None:
        self._leave()
        self.force_exit = True
        for one in list(self.server_state.connections):
            one.transport.abort()


class _State(ServerState):
    """What connections share. The date is made when one needs it."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        if (now := int(time())) != self._second:
            self._second, self._headers = now, [(b"date", formatdate(now, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers


@contextlib.contextmanager
def _signals(listeners: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call the listeners of signals. Elsewhere than in the main thread there are no signals to listen to."""
    loop = asyncio.get_running_loop()
    before = {}
    for number, listener in listeners.items():
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            handler = signal.getsignal(number)
            loop.add_signal_handler(number, listener)
            before[number] = handler or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # whoever listened before us does again
