"""The two sockets between a front and its engine: what both say goes through them, and nothing else.

The front binds them in a private folder, the engine connects. They outlive neither of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import msgspec
import zmq

from sapwood.base.errors import EngineDead
from sapwood.base.wire import Beat, Delta, Deltas, FromEngine, Lists, Reply, Sharing, Submit, ToEngine
from sapwood.config import Config

log = logging.getLogger(__name__)

MOST_AT_ONCE = 64  # messages, so that a front that has fallen far behind still turns to its clients in between


class Start(msgspec.Struct, frozen=True):
    """What an engine process is told on its standard input."""

    config: Config
    folder: str


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

    @property
    def open(self) -> bool:
        """Whether somebody is there to take messages."""
        return bool(int(self._down.get(zmq.EVENTS)) & zmq.POLLOUT)

    def send(self, message: ToEngine) -> None:
        """Raises EngineDead when nobody is there to take it; why, and what follows, is known a moment later."""
        try:
            if not isinstance(message, Submit) or (lists := Lists.of(message)) is None:
                self._down.send(self._encoder.encode(message), zmq.DONTWAIT)
                return
            if lists != self._lists:
                self._down.send(self._encoder.encode(lists), zmq.DONTWAIT)
                self._lists = lists
            self._down.send(self._encoder.encode(Sharing.of(message)), zmq.DONTWAIT)
        except zmq.ZMQError:
            raise EngineDead("the engine process is gone", retry_after=1.0) from None

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


class Post:
    """The engine's ends. `end` is a descriptor that ends every wait as soon as it can be read."""

    def __init__(self, folder: str, end: int | None = None) -> None:
        self._context = zmq.Context()
        self._down, self._up = self._context.socket(zmq.PULL), self._pushing(folder)
        self._down.connect(f"ipc://{folder}/down")
        self._poller = zmq.Poller()
        self._poller.register(self._down, zmq.POLLIN)
        if end is not None:
            self._poller.register(end, zmq.POLLIN)
        self._folder = folder
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine | Lists | Sharing] = msgspec.msgpack.Decoder(
            ToEngine | Lists | Sharing
        )
        self._lists: Lists | None = None

    def _pushing(self, folder: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)  # a front that has stopped reading must not stop the loop
        socket.connect(f"ipc://{folder}/up")
        return socket

    def send(self, message: FromEngine) -> None:
        self._up.send(self._encoder.encode(message))

    def beats(self) -> Callable[[Beat], None]:
        """What sends from another thread: a socket belongs to one."""
        up = self._pushing(self._folder)
        return lambda beat: up.send(msgspec.msgpack.encode(beat))

    def wait(self, seconds: float | None = None) -> bool:
        """For so long at most; whether something has come."""
        return bool(self._poller.poll(None if seconds is None else int(seconds * 1000)))

    def receive(self) -> Iterator[ToEngine]:
        """What has arrived. A message that cannot be read is refused, where it can be read who waits for an answer."""
        while int(self._down.get(zmq.EVENTS)) & zmq.POLLIN:
            sent = self._down.recv()
            try:
                message = self._decoder.decode(sent)
            except msgspec.DecodeError as error:
                log.exception("a message from the front could not be read")
                self._lists = None  # these may be what could not be read
                self._refuse(sent, f"the engine could not read this request: {error}")
                continue
            match message:
                case Lists():
                    self._lists = message
                case Sharing():
                    if self._lists is not None:
                        yield message.whole(self._lists)
                    else:
                        self._refuse(sent, "the engine could not read what this request shares with others")
                case _:
                    yield message

    def _refuse(self, sent: bytes, why: str) -> None:
        """Answer whoever has sent this, if that much of it can be read: nobody is to wait for ever."""
        with contextlib.suppress(msgspec.DecodeError):
            match msgspec.msgpack.decode(sent):
                case ["submit", int(id), *_] | ["sharing", ["submit", int(id), *_]]:
                    self.send(Deltas([], [], [Delta(id, [], finish="error", error=why)]))
                case ["control", int(id), *_]:
                    self.send(Reply(id, {"error": why}))

    def close(self) -> None:
        self._context.destroy(linger=1000)
