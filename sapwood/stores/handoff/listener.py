"""Where an engine answers others: a thread that takes connections, and one for each of these."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from threading import Event, Lock, Thread
from typing import Any

from sapwood.base.errors import ConfigError
from sapwood.stores.handoff.transfer import TransferError
from sapwood.stores.handoff.wire import Hello, Line, Refused

log = logging.getLogger(__name__)

MOST_PEERS = 256
"""Connections at once; others are closed."""
_HELLO_SECONDS = 5.0  # until one has to have said who it is
_TIDY_SECONDS = 1.0

Answer = Callable[[Line, Any], None]
"""What is done about a message of some type; raises TransferError where the connection is of no more use."""


class Visit:
    """What one connection has to do with: `answers` by type of message, and `over` when it is."""

    answers: Mapping[type, Answer]

    def greeted(self, line: Line, hello: Hello) -> bool:
        """Answer the first message; False ends the connection."""
        raise NotImplementedError

    def over(self) -> None:
        """The connection has ended, however it went."""


class Listener:
    """Listens at `host` and `port` (0: any that is free), and calls `tidy` about once a second. Raises ConfigError if it cannot listen.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, host: str, port: int, visit: Callable[[], Visit], tidy: Callable[[], None]) -> None:
        try:
            self._socket = socket.create_server((host, port), family=_family(host))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--transfer-port: {host}:{port} cannot be listened at: {error}.") from error
        self.port = int(self._socket.getsockname()[1])
        self._socket.settimeout(_TIDY_SECONDS)
        self._visit, self._tidy = visit, tidy
        self._lines: set[Line] = set()
        self._lock = Lock()
        self._closed = Event()
        Thread(target=self._take, name="handoff", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for line in self._lines:
                line.close()

    def _take(self) -> None:
        while not self._closed.is_set():
            self._tidy()
            try:
                one, _ = self._socket.accept()
                line = Line(one)
            except OSError:
                if self._closed.is_set():
                    return
                continue
            with self._lock:
                if self._closed.is_set() or len(self._lines) >= MOST_PEERS:
                    line.close()
                    continue
                self._lines.add(line)
            Thread(target=self._serve, args=(line,), name="handoff-peer", daemon=True).start()

    def _serve(self, line: Line) -> None:
        visit = self._visit()
        try:
            line.wait_for(_HELLO_SECONDS)
            hello = line.receive()
            line.wait_for(None)
            if not isinstance(hello, Hello):
                line.send(Refused("the first message has to say who it is from"))
            elif visit.greeted(line, hello):
                while (answer := visit.answers.get(type(message := line.receive()))) is not None:
                    answer(line, message)
        except TransferError as error:
            log.debug("a peer's connection has ended: %s", error)
        finally:
            visit.over()
            line.close()
            with self._lock:
                self._lines.discard(line)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
