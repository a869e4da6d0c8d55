"""Pages in a directory, where they outlive the process.

DIR/pages-00000001.kv   records, see `segment`; the directory gives up whole files, the one that was used longest ago first
DIR/models.json         what the fingerprints in records stand for
DIR/lock                held by the process that writes
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic, sleep

from sapwood.base.errors import ConfigError
from sapwood.base.pages import Bytes
from sapwood.stores.base import Key
from sapwood.stores.segment import Record, Segment

log = logging.getLogger(__name__)

MODELS = "models.json"
PATTERN = "pages-" + "[0-9]" * 8 + ".kv"
_LEAST, _MOST_FILES = 64 << 20, 64  # bytes of a file, and how many there are at most
_LOCK_SECONDS = 5.0  # a process that ends gives the lock back
_PAUSE_SECONDS = 30.0  # after a write that failed


class DiskShelf:
    """Keeps the protocol `Shelf`, in at most `capacity` bytes of a directory, for the model with the fingerprint `origin`, which is
    `about` something.

    What is damaged is not there, and is said in the log. Raises ConfigError if the directory cannot be had.
    """

    name = "file"

    def __init__(self, folder: Path, capacity: int, *, origin: bytes, about: str) -> None:
        self.bytes_per_second = 0.0
        self._folder, self._capacity, self._origin = folder, capacity, origin
        self._most = max(min(_LEAST, capacity // 4), capacity // _MOST_FILES)
        self._paused = 0.0  # until then nothing is written
        self._now = 0  # grows with every use
        self._lock = Lock()  # of the index; pages are read and written by one thread
        self._index: dict[Key, tuple[Segment, Record]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held = hold(folder)
            note_model(folder, origin, about)
            self._segments = [Segment(path, writable=True) for path in sorted(folder.glob(PATTERN))]
        except OSError as error:
            raise ConfigError(f"--kv-store file:{folder}: {error.strerror or error}.") from error
        for segment in self._segments:
            self._index.update((record.key, (segment, record)) for record in segment.records)
        self._make_room()

    def has(self, keys: Sequence[Key]) -> list[bool]:
        with self._lock:
            return [key in self._index for key in keys]

    def put(self, key: Key, page: Bytes) -> bool:
        with self._lock:
            if key in self._index:
                return True
        if monotonic() < self._paused:
            return False
        try:
            segment = self._current(page.nbytes)
            record = segment.append(key, self._origin, page)
        except OSError as error:
            self._paused = monotonic() + _PAUSE_SECONDS
            log.warning("%s: nothing is written for a while: %s", self._folder, error.strerror or error)
            return False
        with self._lock:
            self._index[key] = segment, record
            self._use(segment)
        self._make_room()
        return True

    def get(self, key: Key, page: Bytes) -> bool:
        with self._lock:
            segment, record = self._index.get(key, (None, None))
            if segment is None or record is None or record.size != page.nbytes:
                return False
            self._use(segment)
        try:
            whole = segment.read(record, page)
        except OSError as error:
            log.warning("%s cannot be read: %s", segment.path, error.strerror or error)
            whole = False
        if not whole:
            log.warning("%s: a page is damaged, and is not used", segment.path)
            self.delete([key])
        return whole

    def touch(self, keys: Sequence[Key]) -> None:
        with self._lock:
            for key in keys:
                if key in self._index:
                    self._use(self._index[key][0])

    def delete(self, keys: Sequence[Key]) -> None:
        """They are not found any more; their bytes go with their file."""
        with self._lock:
            for key in keys:
                self._index.pop(key, None)

    def close(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        os.close(self._held)

    def _use(self, segment: Segment) -> None:
        self._now += 1
        segment.used = self._now

    def _current(self, size: int) -> Segment:
        """The file that a page of so many bytes is added to. Raises OSError."""
        if not self._segments or self._segments[-1].end + size > max(self._most, size):
            self._segments.append(Segment(path_of(self._folder), writable=True))
        return self._segments[-1]

    def _make_room(self) -> None:
        """Give up files until the rest fits. The last one stays: it is being written."""
        while len(self._segments) > 1 and sum(segment.end for segment in self._segments) > self._capacity:
            oldest = min(self._segments[:-1], key=lambda segment: segment.used)
            with self._lock:
                self._segments.remove(oldest)
                for record in oldest.records:
                    if self._index.get(record.key, (None,))[0] is oldest:
                        del self._index[record.key]
            oldest.delete()


class PackedShelf:
    """Keeps the protocol `Shelf` with one file of pages, which is only read: what `sapwood cache export` wrote."""

    name = "preloaded"

    def __init__(self, path: Path) -> None:
        self.bytes_per_second = 0.0
        try:
            self._segment = Segment(path, writable=False)
        except OSError as error:
            raise ConfigError(f"--preload-cache {path}: {error.strerror or error}.") from error
        self._index = {record.key: record for record in self._segment.records}
        if not self._index:
            raise ConfigError(f"--preload-cache {path} holds no pages: `sapwood cache export` writes such a file.")

    def has(self, keys: Sequence[Key]) -> list[bool]:
        return [key in self._index for key in keys]

    def put(self, key: Key, page: Bytes) -> bool:
        return False

    def get(self, key: Key, page: Bytes) -> bool:
        record = self._index.get(key)
        if record is None or record.size != page.nbytes or not self._segment.read(record, page):
            self._index.pop(key, None)
            return False
        return True

    def touch(self, keys: Sequence[Key]) -> None:
        pass

    def delete(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._index.pop(key, None)

    def close(self) -> None:
        self._segment.close()


def hold(folder: Path) -> int:
    """A directory as its only writer, until what is returned is closed. Raises ConfigError if another process is, OSError if there
    is no such directory."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if monotonic() > until:
                os.close(fd)
                raise ConfigError(
                    f"{folder} is used by another process: give each engine a directory of its own."
                ) from None
            sleep(0.05)


def path_of(folder: Path) -> Path:
    """Of a new file in it, behind all others."""
    numbers = [int(path.stem.partition("-")[2]) for path in folder.glob(PATTERN)]
    return folder / f"pages-{max(numbers, default=0) + 1:08}.kv"


def models(folder: Path) -> Mapping[str, str]:
    """What the fingerprints of a directory's records are about, by their hex digits."""
    try:
        told = json.loads((folder / MODELS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(origin): str(about) for origin, about in told.items()} if isinstance(told, dict) else {}


def note_model(folder: Path, origin: bytes, about: str) -> None:
    """Raises OSError."""
    told = {**models(folder), origin.hex(): about}
    beside = folder / f"{MODELS}.new"
    beside.write_text(json.dumps(told, indent=1), "utf-8")
    beside.replace(folder / MODELS)
