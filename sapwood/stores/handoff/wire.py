"""What engines say to one another over a connection: messages in msgpack, each behind its length, blocks of pages raw behind the message that
tells of them. Whoever goes on with a prompt asks, whoever has computed it answers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Literal

import msgspec

from sapwood.base.pages import Bytes
from sapwood.stores.handoff.transfer import TransferError

VERSION = 1
MOST_BYTES = 16 << 20  # of a message
_LENGTH = struct.Struct("!I")

State = Literal["open", "closed", "unknown"]
"""Of a ticket: there may be more, there will not, nobody knows it."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message. `origin` is a digest of all that pages depend on beside tokens, `facts` what of it can be told in words."""

    version: int
    origin: bytes
    facts: dict[str, str]


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Both keep the same pages; `ways` is what each way of carrying them has to say, by its name."""

    engine_id: str
    ways: dict[str, bytes]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    why: str


class Find(msgspec.Struct, frozen=True, tag="find"):
    """Where are these pages of a ticket's?"""

    ticket: str
    keys: list[bytes]


class Found(msgspec.Struct, frozen=True, tag="found"):
    """A block for each, -1 where there is none."""

    blocks: list[int]
    state: State


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Have the ticket's blocks been kept all the time?"""

    ticket: str


class Held(msgspec.Struct, frozen=True, tag="held"):
    good: bool


class LetGo(msgspec.Struct, frozen=True, tag="let_go"):
    """The ticket's pages are not needed any more. No answer."""

    ticket: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Send these blocks of a region; `Sent` follows, and then the blocks."""

    region: int
    blocks: list[int]


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    size: int


Message = Hello | Welcome | Refused | Find | Found | Hold | Held | LetGo | Read | Sent

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class Line:
    """One end of a connection. Each side is used by one thread. Raises TransferError for all that happens to it."""

    def __init__(self, one: socket.socket) -> None:
        self._socket = one
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # whose machine has gone hangs up at last

    @classmethod
    def to(cls, host: str, port: int, *, connect: float, seconds: float) -> Line:
        """A new one; `seconds` is how long the other side may take for anything."""
        try:
            one = socket.create_connection((host, port), timeout=connect)
        except OSError as error:
            raise TransferError(f"{host}:{port} cannot be reached: {error}") from error
        one.settimeout(seconds)
        return cls(one)

    def wait_for(self, seconds: float | None) -> None:
        """How long the other side may take from now on; None: as long as it likes."""
        self._socket.settimeout(seconds)

    def send(self, message: Message, blocks: Sequence[Bytes] = ()) -> None:
        told = _encoder.encode(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(told)) + told)
            for block in blocks:
                self._socket.sendall(block.data)
        except OSError as error:
            raise TransferError(f"the peer has gone: {error}") from error

    def receive(self) -> Message:
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > MOST_BYTES:
            raise TransferError(f"a message of {size} bytes is none of ours")
        try:
            message: Message = _decoder.decode(self._exactly(size))
        except msgspec.MsgspecError as error:
            raise TransferError(f"the peer says what cannot be read: {error}") from error
        return message

    def fill(self, block: memoryview) -> None:
        """Take in as many bytes as there is room for."""
        try:
            while block:
                count = self._socket.recv_into(block)
                if not count:
                    raise TransferError("the peer has hung up")
                block = block[count:]
        except OSError as error:
            raise TransferError(f"the peer has gone: {error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytearray:
        found = bytearray(size)
        self.fill(memoryview(found))
        return found
