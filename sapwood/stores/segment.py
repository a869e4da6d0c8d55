"""A file of pages: records one behind another, each with what it takes to know it, and to know that it is whole.

    record    header (64 bytes: magic, version, sizes, checksums, origin, key) | page

Records are only ever added. Whoever is killed while adding one leaves a last record that is cut off; it is not read, and the next
record goes in its place.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from sapwood.base.pages import Bytes
from sapwood.stores.base import Key

_MAGIC, _VERSION = b"SWKV", 1
_FIELDS = struct.Struct("<4sHHIQ16s24s")
_HEADER = _FIELDS.size + 4
ORIGIN_BYTES = 16
_MOST_PAGE = 1 << 32


class Record(NamedTuple):
    """Where a page is in its file. `origin` is the fingerprint of the model that it is of, `crc` that of the page."""

    key: Key
    origin: bytes
    start: int
    size: int
    crc: int


class Segment:
    """One such file, open.

    Attributes:
        end: Where the next record goes.
        records: Those that were found at opening, and those added since.
        used: When a page was last wanted, in its owner's count.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o600)
        self.records = list(self._scan())
        self.end = self.records[-1].start + self.records[-1].size if self.records else 0
        self.used = 0
        if writable:
            os.ftruncate(self._fd, self.end)

    def append(self, key: Key, origin: bytes, page: Bytes) -> Record:
        """Add a page. Raises OSError, and then it is not there."""
        crc = crc32(page.data)
        fields = _FIELDS.pack(_MAGIC, _VERSION, len(key), crc, page.nbytes, origin, key)
        start = self.end + _HEADER
        try:
            self._write(fields + struct.pack("<I", crc32(fields)), self.end)
            self._write(page.data, start)
        except OSError:
            os.ftruncate(self._fd, self.end)
            raise
        record = Record(key, origin, start, page.nbytes, crc)
        self.records.append(record)
        self.end = start + page.nbytes
        return record

    def read(self, record: Record, page: Bytes) -> bool:
        """Fill `page`; False if it is not whole. Raises OSError."""
        got, view = 0, page.data
        while got < record.size:
            count = os.preadv(self._fd, [view[got:]], record.start + got)
            if not count:
                return False
            got += count
        return crc32(page.data) == record.crc

    def close(self) -> None:
        os.close(self._fd)

    def delete(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count

    def _scan(self) -> Iterator[Record]:
        """The records that are whole as far as their headers say."""
        size, at = os.fstat(self._fd).st_size, 0
        while at + _HEADER <= size:
            header = os.pread(self._fd, _HEADER, at)
            magic, version, length, crc, num_bytes, origin, key = _FIELDS.unpack(header[: _FIELDS.size])
            right = magic == _MAGIC and version == _VERSION and length <= len(key) and num_bytes < _MOST_PAGE
            if not right or header[_FIELDS.size :] != struct.pack("<I", crc32(header[: _FIELDS.size])):
                return
            start = at + _HEADER
            if start + num_bytes > size:
                return
            yield Record(key[:length], origin, start, num_bytes, crc)
            at = start + num_bytes
