"""What is in a directory of pages, for those who look after it: listing, clearing, and taking it elsewhere as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sapwood.base.errors import ConfigError
from sapwood.base.pages import Bytes
from sapwood.stores.base import Key
from sapwood.stores.disk import PATTERN, hold, models, note_model, path_of
from sapwood.stores.segment import ORIGIN_BYTES, Record, Segment

_MODELS_KEY: Key = b"models"  # of the record of a packed file that says what its fingerprints stand for
_NOBODY = bytes(ORIGIN_BYTES)


@dataclass
class Content:
    """What there is of one model: `origin` is its fingerprint in hex digits."""

    origin: str
    about: str
    num_pages: int = 0
    num_bytes: int = 0


def contents(folder: Path) -> list[Content]:
    """Raises ConfigError if there is no such directory, or it is another's."""
    found: dict[str, Content] = {}
    with _readable(folder):
        names = models(folder)
        for segment, records in _records(folder):
            segment.close()
            for record in records:
                one = found.setdefault(
                    record.origin.hex(), Content(record.origin.hex(), names.get(record.origin.hex(), "?"))
                )
                one.num_pages += 1
                one.num_bytes += record.size
    return list(found.values())


def clear(folder: Path) -> int:
    """Delete all pages; their bytes. Raises ConfigError if an engine has the directory, or there is none."""
    _check(folder)
    with _readable(folder):
        held, freed = hold(folder), 0
        for path in folder.glob(PATTERN):
            freed += path.stat().st_size
            path.unlink()
        os.close(held)
    return freed


def pack(folder: Path, target: Path, origin: str = "") -> int:
    """Write the pages of all models whose fingerprint begins with `origin` to one file; how many there were. What is damaged
    is left out. Raises ConfigError, for no pages too."""
    _check(folder)
    names = {name: about for name, about in models(folder).items() if name.startswith(origin)}
    beside = target.with_name(f"{target.name}.new")
    beside.unlink(missing_ok=True)
    seen: set[Key] = set()
    try:
        with closing(Segment(beside, writable=True)) as packed:
            for segment, records in _records(folder):
                with closing(segment):
                    mine = [one for one in records if one.origin.hex().startswith(origin) and one.key not in seen]
                    seen |= {one.key for one, page in _whole(segment, mine) if packed.append(one.key, one.origin, page)}
            packed.append(_MODELS_KEY, _NOBODY, np.frombuffer(json.dumps(names).encode(), np.uint8))
        if not seen:
            beside.unlink()
            raise ConfigError(
                f"{folder} has no pages{f' of a model {origin}' if origin else ''}; `sapwood cache ls` lists them."
            )
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{target}: {error.strerror or error}.") from error
    return len(seen)


def unpack(source: Path, folder: Path) -> int:
    """Add the pages of a packed file that a directory, which may be new, does not have; how many these are. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(os.close, hold(folder))
            packed = stack.enter_context(closing(Segment(source, writable=False)))
            if not packed.records:
                raise ConfigError(f"{source} has no pages: name a file that `sapwood cache export` wrote.")
            there = _kept(folder)
            here = stack.enter_context(closing(Segment(path_of(folder), writable=True)))
            for one, page in _whole(packed, list(packed.records)):
                if one.key == _MODELS_KEY:
                    for origin, about in _names(page).items():
                        note_model(folder, bytes.fromhex(origin), about)
                elif (one.key, one.origin) not in there:
                    here.append(one.key, one.origin, page)
            return len(here.records)
    except OSError as error:
        raise ConfigError(f"{source} cannot be brought to {folder}: {error.strerror or error}.") from error


def _records(folder: Path) -> Iterator[tuple[Segment, list[Record]]]:
    _check(folder)
    for path in sorted(folder.glob(PATTERN)):
        segment = Segment(path, writable=False)
        yield segment, segment.records


def _kept(folder: Path) -> set[tuple[Key, bytes]]:
    """What there is already, by key and fingerprint."""
    found: set[tuple[Key, bytes]] = set()
    for segment, records in _records(folder):
        segment.close()
        found.update((one.key, one.origin) for one in records)
    return found


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror or error}.") from error


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no directory: name the one that --kv-store file: has.")


def _whole(segment: Segment, records: list[Record]) -> Iterator[tuple[Record, Bytes]]:
    for record in records:
        page = np.empty(record.size, np.uint8)
        if segment.read(record, page):
            yield record, page


def _names(page: Bytes) -> Mapping[str, str]:
    told = json.loads(page.tobytes())
    return {str(origin): str(about) for origin, about in told.items()}
