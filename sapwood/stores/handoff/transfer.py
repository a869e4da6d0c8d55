"""The protocol of what carries pages from one engine's memory to another's.

Memory is registered once, as regions of blocks of equal size, and then spoken of by region and block: what libraries for RDMA call prepared
descriptors. The side that has the pages does nothing when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sapwood.base.pages import Bytes


class TransferError(Exception):
    """A peer cannot be reached, or has gone in the midst of something."""


class Reader(Protocol):
    """A peer whose memory may be read. Used by one thread."""

    def read(self, region: int, blocks: Sequence[int], into: Sequence[Bytes]) -> None:
        """Fill each of `into` with one of the peer's blocks; returns when all are. Raises TransferError: then they hold anything.

        Whether a block still was what the reader took it for is asked behind this (`wire.Hold`).
        """
        ...

    def close(self) -> None: ...


class Transfer(Protocol):
    """One way of carrying pages.

    Attributes:
        name: What counters call it.
    """

    name: str

    def register(self, regions: Sequence[Bytes]) -> None:
        """Let peers read these, uint8 [blocks, bytes of a block] each."""
        ...

    def metadata(self) -> bytes:
        """What a peer has to know to read what was registered here; b"" if there is no way."""
        ...

    def add_peer(self, host: str, port: int, metadata: bytes) -> Reader | None:
        """A peer that said that of itself and listens there; None if it cannot be read from here in this way. Raises TransferError."""
        ...
