"""What clients leave with the server: responses, stored chats, files, batches. One SQLite database."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec

from sapwood.base.errors import ConfigError, RequestError

T = TypeVar("T")

log = logging.getLogger(__name__)

MOST_OBJECTS = 100_000

_NAME = "sapwood.sqlite3"
_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS objects (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    held INTEGER NOT NULL,
    body TEXT NOT NULL,
    more BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON objects (owner, held, place);
CREATE INDEX IF NOT EXISTS by_kind ON objects (kind, owner, place);
CREATE TABLE IF NOT EXISTS shares (owner TEXT PRIMARY KEY, objects INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS came AFTER INSERT ON objects BEGIN
    INSERT OR IGNORE INTO shares VALUES (new.owner, 0, 0);
    UPDATE shares SET objects = objects + 1, bytes = bytes + new.size WHERE owner = new.owner;
END;
CREATE TRIGGER IF NOT EXISTS grew AFTER UPDATE OF size ON objects BEGIN
    UPDATE shares SET bytes = bytes + new.size - old.size WHERE owner = new.owner;
END;
CREATE TRIGGER IF NOT EXISTS went AFTER DELETE ON objects BEGIN
    UPDATE shares SET objects = objects - 1, bytes = bytes - old.size WHERE owner = old.owner;
END;
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL,
    number INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (batch, number)
);
"""


class Thing(NamedTuple):
    """An object as it is kept: `body` is the JSON that its owner is told, `more` what belongs to it."""

    id: str
    body: str
    more: bytes


class Books:
    """The database, in the thread that owns it: what `Store.run` is given works on this, within a transaction.

    An owner's objects are seen by nobody else. Where there are too many objects or bytes, the oldest of the owner who has
    most of them make room, but for those that are held. `lines` are the results of batches that run.
    """

    def __init__(self, path: str, most_bytes: int) -> None:
        """Raises sqlite3.Error."""
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        self.db.create_function("text_at", -1, _text_at, deterministic=True)
        self._most_bytes = most_bytes
        try:
            self._prepare()
        except BaseException:
            self.db.close()
            raise

    def _prepare(self) -> None:
        self.db.execute("PRAGMA locking_mode = EXCLUSIVE")  # a second server on the same file is refused
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"it has version {version}, and this server writes {_VERSION}")
        self.db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")

    def put(self, kind: str, owner: str, id: str, body: str, more: bytes = b"", *, held: bool = False) -> None:
        """Keep an object, or what has become of one with the same id; then make room."""
        self.db.execute(
            "INSERT INTO objects (kind, owner, id, size, held, body, more) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET size = excluded.size, held = excluded.held, body = excluded.body, "
            "more = excluded.more",
            (kind, owner, id, len(body) + len(more), held, body, more),
        )
        self._make_room()

    def tell(self, id: str, body: str) -> None:
        """Change what is told of an object."""
        self.db.execute("UPDATE objects SET body = ? WHERE id = ?", (body, id))

    def hold(self, id: str, *, held: bool) -> None:
        """Whether an object is safe from making room."""
        self.db.execute("UPDATE objects SET held = ? WHERE id = ?", (held, id))

    def get(self, kind: str, owner: str, id: str) -> Thing | None:
        query = "SELECT id, body, more FROM objects WHERE kind = ? AND owner = ? AND id = ?"
        row = self.db.execute(query, (kind, owner, id)).fetchone()
        return None if row is None else Thing(*row)

    def delete(self, kind: str, owner: str, id: str) -> bool:
        """Whether it was there, and not held."""
        query = "DELETE FROM objects WHERE kind = ? AND owner = ? AND id = ? AND held = 0"
        return self.db.execute(query, (kind, owner, id)).rowcount > 0

    def expire(self, kind: str, path: str, now: float) -> None:
        """Delete objects that are not held and have a smaller number than `now` at a path of their bodies."""
        query = "DELETE FROM objects WHERE kind = ? AND held = 0 AND json_extract(body, ?) < ?"
        self.db.execute(query, (kind, path, now))

    def page(
        self,
        kind: str,
        owner: str,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        where: Mapping[tuple[str, ...], str] = MappingProxyType({}),
    ) -> list[str]:
        """The bodies of at most `limit` objects in the order of their arrival, behind the one with the id `after`.

        `where`: the keys that lead to a text in the body, and what it has to be. Raises RequestError where there is no such
        id.
        """
        query = "SELECT body FROM objects WHERE kind = ? AND owner = ?"
        values: list[Any] = [kind, owner]
        if after is not None:
            if self.get(kind, owner, after) is None:
                raise RequestError(f"after: there is nothing with the id {after!r}.", param="after")
            query += f" AND place {'<' if newest_first else '>'} (SELECT place FROM objects WHERE id = ?)"
            values.append(after)
        for keys, text in where.items():
            query += f" AND text_at(body{', ?' * len(keys)}) = ?"
            values += *keys, text
        query += f" ORDER BY place {'DESC' if newest_first else 'ASC'} LIMIT ?"
        return [body for (body,) in self.db.execute(query, [*values, limit])]

    def _make_room(self) -> None:
        while True:
            shares = self.db.execute("SELECT owner, objects, bytes FROM shares").fetchall()
            crowded = sum(count for _, count, _ in shares) > MOST_OBJECTS
            if not crowded and sum(size for _, _, size in shares) <= self._most_bytes:
                return
            shares.sort(key=lambda share: share[1 if crowded else 2], reverse=True)
            if not any(self._drop_oldest(owner) for owner, _, _ in shares):
                return

    def _drop_oldest(self, owner: str) -> bool:
        query = "SELECT min(place) FROM objects WHERE owner = ? AND held = 0"
        (place,) = self.db.execute(query, (owner,)).fetchone()
        self.db.execute("DELETE FROM objects WHERE place = ?", (place,))
        return place is not None


class Store:
    """The books, kept off the event loop: whatever is asked of them is done in the order of asking.

    In `directory` they survive the server; without one they are in memory, and gone with it. `most_bytes` bounds what is
    kept. Raises ConfigError for a directory that cannot be used.
    """

    def __init__(self, directory: str | None, *, most_bytes: int) -> None:
        self._books = _open(directory, most_bytes)
        self._thread = ThreadPoolExecutor(1, "store")

    async def run(self, work: Callable[[Books], T]) -> T:
        """The result of `work`, which is done as a whole or not at all, also if nobody waits for it any longer."""
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._within, work)))

    def soon(self, work: Callable[[Books], None]) -> None:
        """Have `work` done before all that is asked later. What goes wrong is logged."""
        self._thread.submit(self._within, work).add_done_callback(_report)

    def close(self) -> None:
        """Finish what was asked for, and close the file."""
        self._thread.shutdown()
        self._books.db.close()

    def _within(self, work: Callable[[Books], T]) -> T:
        db = self._books.db
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._books)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        return result


def _text_at(body: str, *keys: str) -> str | None:
    """What SQLite's own functions find only under keys without quotes and backslashes."""
    found = msgspec.json.decode(body)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _open(directory: str | None, most_bytes: int) -> Books:
    if directory is None:
        return Books(":memory:", most_bytes)
    path = Path(directory)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path / _NAME, os.O_RDWR | os.O_CREAT, 0o600))
        return Books(str(path / _NAME), most_bytes)
    except OSError as error:
        raise ConfigError(f"--state-dir {directory}: {error.strerror or error}.") from error
    except sqlite3.OperationalError as error:
        hint = " Another server uses it: give each its own." if "locked" in str(error) else ""
        raise ConfigError(f"--state-dir {directory}: {error}.{hint}") from error
    except sqlite3.Error as error:
        raise ConfigError(f"--state-dir {directory}: {path / _NAME}: {error}. Give another directory.") from error


def _report(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        log.error("what a client left could not be stored: %s", error)
