"""The admin socket: the same application, for whoever may open a file."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from sapwood.base.errors import ConfigError
from sapwood.server.door import remove_abandoned
from sapwood.server.passage import passage


class Trusting:
    """`app` for requests that need no key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            passage(scope, send).trusted = True
        await self._app(scope, receive, send)


@contextlib.contextmanager
def admin_socket(path: str) -> Iterator[socket.socket]:
    """A Unix socket at `path`, not listening yet, which only our user may open; the file goes with the context.

    One that a server has left behind is replaced. Raises ConfigError where there is anything else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            remove_abandoned(Path(path))
            sock.bind(path)
            os.chmod(path, 0o600)  # before it listens, so nobody came in between
        except OSError as error:
            raise ConfigError(f"--admin-socket {path}: {error.strerror or error}. Choose another path.") from error
        mine = _place(path)
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if _place(path) == mine:
                    os.unlink(path)


def _place(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
