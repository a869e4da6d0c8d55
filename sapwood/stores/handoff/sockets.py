"""Pages over a TCP connection, from memory into memory, by threads that wait: what goes everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from sapwood.base.pages import Bytes
from sapwood.stores.handoff.transfer import TransferError
from sapwood.stores.handoff.wire import Line, Read, Sent

_AT_ONCE = 64  # blocks that are asked for by one message


class SocketTransfer:
    """Keeps the protocol `Transfer`. `connect` makes a connection to a peer, on which it has been greeted."""

    name = "tcp"

    def __init__(self, connect: Callable[[str, int], Line]) -> None:
        self._connect = connect
        self._regions: tuple[Bytes, ...] = ()

    def register(self, regions: Sequence[Bytes]) -> None:
        self._regions = tuple(regions)

    def metadata(self) -> bytes:
        return b"1" if self._regions else b""

    def add_peer(self, host: str, port: int, metadata: bytes) -> SocketReader | None:
        return SocketReader(self._connect(host, port)) if metadata else None

    def answer(self, line: Line, message: Read) -> None:
        """Send what a peer wants to read."""
        if not 0 <= message.region < len(self._regions):
            raise TransferError(f"there is no region {message.region}")
        region = self._regions[message.region]
        if not all(0 <= block < len(region) for block in message.blocks):
            raise TransferError("there is no such block")
        line.send(Sent(len(message.blocks) * region.shape[1]), [region[block] for block in message.blocks])


class SocketReader:
    """Keeps the protocol `Reader`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def read(self, region: int, blocks: Sequence[int], into: Sequence[Bytes]) -> None:
        pairs = iter(zip(blocks, into, strict=True))
        while some := list(islice(pairs, _AT_ONCE)):
            self._line.send(Read(region, [block for block, _ in some]))
            answer, size = self._line.receive(), sum(page.nbytes for _, page in some)
            if not isinstance(answer, Sent) or answer.size != size:
                raise TransferError("the peer sends something else than it was asked for")
            for _, page in some:
                self._line.fill(page.data)

    def close(self) -> None:
        self._line.close()
