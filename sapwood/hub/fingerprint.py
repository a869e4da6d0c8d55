"""Telling models apart by their contents, wherever their files lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from sapwood.hub.cache import Cache
from sapwood.hub.files import ModelFiles, weight_files

_SIZE = 16  # bytes of a digest
_STRETCH = 64 << 20  # bytes of a file that are digested by themselves, and so beside others
_THREADS = 4
_SMALL = 64 << 20  # a file of fewer bytes is sooner read than looked up


def fingerprint(files: ModelFiles, *, weights: bool = True, cache: Cache | None = None) -> bytes:
    """Of a model's config and every byte of its weights; without `weights` of the config alone.

    Large files are read once: their digests stay in the cache, by path, size and time of the last change.
    """
    made = blake2b(json.dumps(files.config, sort_keys=True, default=str).encode(), digest_size=_SIZE)
    if weights:
        for path in [files.path] if files.kind == "gguf" else weight_files(files.path):
            made.update(_known(path, cache or Cache.default()))
    return made.digest()


def _known(path: Path, cache: Cache) -> bytes:
    """The digest of a file, from the cache if it is there."""
    found = path.stat()
    if found.st_size < _SMALL:
        return _digest(path, found.st_size)
    seen = f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ino}"
    place = cache.digests / blake2b(seen.encode(), digest_size=_SIZE).hexdigest()
    with suppress(OSError):
        if len(digest := place.read_bytes()) == _SIZE:
            return digest
    digest = _digest(path, found.st_size)
    with suppress(OSError):  # a cache that cannot be written costs another reading
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        partial.write_bytes(digest)
        partial.replace(place)
    return digest


def _digest(path: Path, size: int) -> bytes:
    """Of the digests of all stretches, which do not wait for one another."""
    with path.open("rb") as file, ThreadPoolExecutor(_THREADS) as threads:
        stretches = threads.map(lambda start: _stretch(file.fileno(), start), range(0, size, _STRETCH))
        return blake2b(b"".join(stretches), digest_size=_SIZE).digest()


def _stretch(file: int, start: int) -> bytes:
    made = blake2b(digest_size=_SIZE)
    for piece in _pieces(file, start, start + _STRETCH):
        made.update(piece)
    return made.digest()


def _pieces(file: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (piece := os.pread(file, min(1 << 20, stop - start), start)):
        yield piece
        start += len(piece)
