"""The store: whose objects are seen by whom, how many there are, and what a directory must be."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from sapwood.base.errors import ConfigError
from sapwood.server import store as module
from sapwood.server.store import Books, Store

pytestmark = pytest.mark.anyio


def ids(books: Books, owner: str = "a") -> list[str]:
    return books.page("x", owner, limit=99, newest_first=False)


@pytest.fixture
def books() -> Books:
    return Books(":memory:", 100)


def put(books: Books, id: str, owner: str = "a", size: int = 10, **more: bool) -> None:
    books.put("x", owner, id, id, bytes(size - len(id)), **more)


def test_owners_and_kinds(books: Books) -> None:
    put(books, "1")
    assert books.get("x", "a", "1") == ("1", "1", bytes(9))
    assert books.get("x", "b", "1") is None and books.get("y", "a", "1") is None
    assert not books.delete("x", "b", "1") and books.delete("x", "a", "1") and not books.delete("x", "a", "1")


def test_pages(books: Books) -> None:
    for number in range(5):
        put(books, str(number))
    put(books, "foreign", "b")
    assert books.page("x", "a", limit=2) == ["4", "3"]
    assert books.page("x", "a", limit=2, after="3") == ["2", "1"]
    assert books.page("x", "a", limit=9, after="3", newest_first=False) == ["4"]
    books.tell("2", '{"m": {"k y": "v"}}')
    books.tell("3", '{"m": {"k y": "w"}}')
    for id in "014":
        books.tell(id, "{}")
    assert books.page("x", "a", limit=9, where={("m", "k y"): "v"}) == ['{"m": {"k y": "v"}}']


def test_the_oldest_of_who_has_most_make_room(books: Books) -> None:
    put(books, "b1", "b")
    for number in range(9):
        put(books, f"a{number}", held=number == 0)
    assert ids(books) == [f"a{number}" for number in range(9)]
    put(books, "b2", "b", size=20)
    assert ids(books) == ["a0", *(f"a{number}" for number in range(3, 9))] and ids(books, "b") == ["b1", "b2"]
    put(books, "b1", "b", size=30)  # it grows, and keeps its place
    assert ids(books) == ["a0", *(f"a{number}" for number in range(5, 9))]
    books.hold("b1", held=True)
    put(books, "b3", "b", size=100)
    assert "b3" not in ids(books, "b") and len(ids(books)) == 5, "what does not fit at all is not kept"


def test_numbers_are_bounded_too(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OBJECTS", 3)
    for number in range(5):
        put(books, str(number))
    assert ids(books) == ["2", "3", "4"]


async def test_work_is_done_whole_or_not_at_all() -> None:
    store = Store(None, most_bytes=100)

    def half(books: Books) -> None:
        put(books, "1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await store.run(half)
    store.soon(lambda books: put(books, "2"))
    waiting = asyncio.create_task(store.run(lambda books: put(books, "3")))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await store.run(ids) == ["2", "3"]
    store.close()


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    first = Store(str(tmp_path), most_bytes=100)
    with pytest.raises(ConfigError, match="Another server uses it"):
        Store(str(tmp_path), most_bytes=100)
    first.close()
    Store(str(tmp_path), most_bytes=100).close()


@pytest.mark.parametrize("spoilt", ["file", "garbage", "newer"])
def test_directories_that_cannot_be_used(tmp_path: Path, spoilt: str) -> None:
    path = tmp_path / "sapwood.sqlite3"
    if spoilt == "file":
        (tmp_path / "x").write_text("")
        tmp_path /= "x"
    elif spoilt == "garbage":
        path.write_bytes(b"garbage" * 1000)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=r"--state-dir"):
        Store(str(tmp_path), most_bytes=100)
