"""Payloads for whoever subscribes, by ZeroMQ, and again for those who missed some.

PUB     topic | number of the payload, 8 bytes, big end first | payload
ROUTER  asked with a number, answers with all payloads from that one on that are kept, each as number | payload; then with -1
"""

from __future__ import annotations

from collections import deque
from threading import Thread
from typing import Any

from sapwood.base.errors import ConfigError

_END = (-1).to_bytes(8, "big", signed=True)
_STOP = b""


class ZmqPublisher:
    """Sends from a thread of its own, which sleeps while there is nothing to send. `kept` payloads are there for those who ask.

    Raises ConfigError if an address cannot be had, or pyzmq is missing.
    """

    def __init__(self, endpoint: str, replay: str | None, *, topic: str, kept: int, most: int) -> None:
        try:
            import zmq
        except ImportError:
            raise ConfigError("--kv-events-config needs pyzmq: pip install 'sapwood[events]'.") from None
        self._zmq: Any = zmq
        self._topic = topic.encode()
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=kept)
        self._context: Any = zmq.Context()
        self._out, self._inner = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._inner.bind("inproc://payloads")
        self._out.connect("inproc://payloads")
        self._pub = self._open(zmq.PUB, endpoint, most)
        self._router: Any = None if replay is None else self._open(zmq.ROUTER, replay, most)
        self._thread = Thread(target=self._run, daemon=True, name="kv-events")
        self._thread.start()

    def publish(self, payload: bytes) -> None:
        self._out.send(payload)

    def close(self) -> None:
        self._out.send(_STOP)
        self._thread.join()
        self._out.close()
        self._context.term()

    def _open(self, kind: int, endpoint: str, most: int) -> Any:
        """Bound where the address is ours (a wildcard, a path), else connected, as to a proxy."""
        socket = self._context.socket(kind)
        socket.setsockopt(self._zmq.SNDHWM, most)
        socket.setsockopt(self._zmq.LINGER, 0)
        try:
            if "*" in endpoint or "://0.0.0.0" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        except self._zmq.ZMQError as error:
            self._context.destroy(0)
            raise ConfigError(f"--kv-events-config: {endpoint}: {error}.") from error
        return socket

    def _run(self) -> None:
        poller = self._zmq.Poller()
        sockets = [self._inner] if self._router is None else [self._inner, self._router]
        for socket in sockets:
            poller.register(socket, self._zmq.POLLIN)
        number, going = 0, True
        while going:
            for socket, _ in poller.poll():
                if socket is self._router:
                    self._replay()
                elif (payload := self._inner.recv()) != _STOP:
                    told = number.to_bytes(8, "big"), payload
                    self._kept.append(told)
                    self._pub.send_multipart((self._topic, *told))
                    number += 1
                else:
                    going = False
        for socket in (*sockets, self._pub):
            socket.close()

    def _replay(self) -> None:
        client, *rest = self._router.recv_multipart()
        first = int.from_bytes(rest[-1], "big") if rest and len(rest[-1]) == 8 else 0
        for number, payload in self._kept:
            if int.from_bytes(number, "big") >= first:
                self._router.send_multipart((client, b"", number, payload))
        self._router.send_multipart((client, b"", _END, b""))
