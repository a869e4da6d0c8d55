"""Places for pages: what they keep, how much of it, and that damage costs a page and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.pages import Bytes
from sapwood.stores import DiskShelf, HostShelf, Key, PackedShelf, Shelf, ThreadedStore, Tiers
from sapwood.stores import disk as disk_module
from sapwood.stores import folder as folders
from sapwood.stores.segment import Segment
from tests.waiting import SECONDS, eventually

SIZE = 1000
ORIGIN = b"o" * 16


def page(number: int, size: int = SIZE) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def name(number: int) -> Key:
    return number.to_bytes(16, "little") + b"\0"


def got(shelf: Shelf, number: int, size: int = SIZE) -> bool:
    """Whether a page is there, and right."""
    found = np.zeros(size, np.uint8)
    there = shelf.get(name(number), found)
    assert not there or (found == page(number, size)).all()
    return there


def disk(folder: Path, capacity: int = 1 << 20, origin: bytes = ORIGIN) -> DiskShelf:
    return DiskShelf(folder, capacity, origin=origin, about="a model")


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_what_is_put_is_there(kind: str, tmp_path: Path) -> None:
    shelf: Shelf = HostShelf(1 << 20) if kind == "host" else disk(tmp_path)
    assert all(shelf.put(name(number), page(number)) for number in range(20))
    assert shelf.put(name(3), page(3)), "it is there already"
    assert shelf.has([name(number) for number in range(22)]) == [True] * 20 + [False] * 2
    assert all(got(shelf, number) for number in range(20))
    assert not got(shelf, 21) and not shelf.get(name(2), np.zeros(SIZE + 1, np.uint8)), "another size is another page"
    shelf.delete([name(4)])
    assert not got(shelf, 4) and shelf.has([name(4), name(5)]) == [False, True]
    shelf.close()


def test_host_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    shelf = HostShelf(10 * SIZE)
    for number in range(10):
        shelf.put(name(number), page(number))
    shelf.touch([name(0)])
    assert got(shelf, 1)
    assert shelf.put(name(10), page(10)) and shelf.put(name(11), page(11, 2 * SIZE))
    assert [number for number in range(11) if shelf.has([name(number)])[0]] == [0, 1, 5, 6, 7, 8, 9, 10]
    assert not shelf.put(name(12), page(12, 11 * SIZE)), "more than there is room for"


def test_a_directory_is_bounded_and_gives_up_whole_files(tmp_path: Path) -> None:
    shelf = disk(tmp_path, capacity=40 * SIZE)
    for number in range(60):
        shelf.put(name(number), page(number))
        assert got(shelf, 0) or number > 20, "what is wanted again and again stays longest"
    assert sum(path.stat().st_size for path in tmp_path.glob("pages-*")) <= 40 * SIZE + 40 * 64
    assert got(shelf, 59) and not got(shelf, 15)
    shelf.close()


def test_a_directory_outlives_its_process(tmp_path: Path) -> None:
    first = disk(tmp_path)
    for number in range(5):
        first.put(name(number), page(number))
    first.close()
    second = disk(tmp_path)
    assert all(got(second, number) for number in range(5))
    second.put(name(5), page(5))
    second.close()
    third = disk(tmp_path)
    assert got(third, 5) and len(list(tmp_path.glob("pages-*"))) == 1
    third.close()


@pytest.mark.parametrize("cut", [1, 30, 63, 64, SIZE, SIZE + 40])
def test_a_record_that_was_cut_off_is_not_there_and_its_place_is_used(cut: int, tmp_path: Path) -> None:
    first = disk(tmp_path)
    for number in range(3):
        first.put(name(number), page(number))
    first.close()
    (path,) = tmp_path.glob("pages-*")
    os.truncate(path, path.stat().st_size - cut)
    second = disk(tmp_path)
    assert [got(second, number) for number in range(3)] == [True, True, False]
    assert second.put(name(2), page(2)) and got(second, 2)
    second.close()
    third = disk(tmp_path)
    assert all(got(third, number) for number in range(3))
    third.close()


def test_a_damaged_page_is_not_used_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = disk(tmp_path)
    for number in range(3):
        shelf.put(name(number), page(number))
    (path,) = tmp_path.glob("pages-*")
    with path.open("r+b") as file:
        file.seek(64 + SIZE + 64 + 500)
        file.write(b"\0\1\2\3")
    assert [got(shelf, number) for number in range(3)] == [True, False, True]
    assert "damaged" in caplog.text and not shelf.has([name(1)])[0]
    path.unlink()
    path.touch()
    shelf.close()


def test_a_full_disk_costs_what_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = disk(tmp_path)
    shelf.put(name(0), page(0))
    real = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        if len(data) == SIZE:
            real(fd, data[:100], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert not shelf.put(name(1), page(1)) and not shelf.put(name(2), page(2))
    assert caplog.text.count("No space left") == 1, "said once for a while"
    monkeypatch.setattr(os, "pwrite", real)
    monkeypatch.setattr(shelf, "_paused", 0.0)
    assert shelf.put(name(3), page(3)) and got(shelf, 0) and got(shelf, 3) and not got(shelf, 1)
    shelf.close()


def test_one_directory_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_LOCK_SECONDS", 0.0)
    shelf = disk(tmp_path)
    with pytest.raises(ConfigError, match="used by another process"):
        disk(tmp_path)
    with pytest.raises(ConfigError, match="used by another process"):
        folders.clear(tmp_path)
    shelf.close()
    disk(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--kv-store file"):
        disk(tmp_path / "file" / "below")


def test_tiers_promote_what_is_used(tmp_path: Path) -> None:
    host, below = HostShelf(3 * SIZE), disk(tmp_path)
    tiers = Tiers([host, below])
    for number in range(6):
        assert tiers.put(name(number), page(number))
    assert host.has([name(0), name(5)]) == [False, True]
    assert tiers.has([name(0), name(7)]) == [True, False]
    found = np.zeros(SIZE, np.uint8)
    assert tiers.get(name(0), found) and (found == page(0)).all()
    assert host.has([name(0)]) == [True], "where it is found sooner next time"
    assert tiers.hits == {"host": 0, "file": 1} and tiers.loaded_bytes["file"] == SIZE
    assert tiers.seconds([name(0)], SIZE) == 0.0, "nothing was read from host memory yet"
    assert tiers.seconds([name(1)], SIZE) > 0
    tiers.close()


def test_a_thread_does_the_work_and_a_fault_costs_the_page(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(HostShelf):
        def get(self, key: Key, page: Bytes) -> bool:
            raise RuntimeError("it broke")

    for shelf, good in ((HostShelf(1 << 20), [True, False]), (Faulty(1 << 20), [False, False])):
        store, done = ThreadedStore(Tiers([shelf])), []
        pages = [page(0), page(1)]
        tickets = [store.submit_store([name(0)], pages[:1]), store.submit_load([name(0), name(9)], pages)]
        while len(done) < 2:
            store.wait(30)
            done += store.poll()
        told = {one.ticket: one.good for one in done}
        assert told[tickets[0]] == [True]
        if told[tickets[1]] != good:  # loads go before what is to be stored
            ticket = store.submit_load([name(0), name(9)], pages)
            store.wait(30)
            assert [(one.ticket, one.good) for one in store.poll()] == [(ticket, good)]
        store.close(30)
    assert "it broke" in caplog.text


def test_a_directory_travels_as_one_file(tmp_path: Path) -> None:
    shelf = disk(tmp_path / "a")
    for number in range(3):
        shelf.put(name(number), page(number))
    shelf.close()
    other = disk(tmp_path / "a", origin=b"x" * 16)
    other.put(name(7), page(7))
    other.close()
    assert [(one.about, one.num_pages, one.num_bytes) for one in folders.contents(tmp_path / "a")] == [
        ("a model", 3, 3 * SIZE),
        ("a model", 1, SIZE),
    ]
    packed = tmp_path / "packed"
    assert folders.pack(tmp_path / "a", packed, b"x".hex()) == 1
    assert folders.pack(tmp_path / "a", packed) == 4
    read = PackedShelf(packed)
    assert got(read, 2) and got(read, 7) and not got(read, 5) and not read.put(name(5), page(5))
    read.close()
    assert folders.unpack(packed, tmp_path / "b") == 4
    assert folders.contents(tmp_path / "b") == folders.contents(tmp_path / "a")
    there = disk(tmp_path / "b")
    assert got(there, 0) and got(there, 7)
    there.close()
    assert folders.clear(tmp_path / "b") > 4 * SIZE and not folders.contents(tmp_path / "b")


def test_packed_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--preload-cache"):
        PackedShelf(tmp_path / "nothing")
    (tmp_path / "other").write_bytes(b"something else" * 100)
    with pytest.raises(ConfigError, match="holds no pages"):
        PackedShelf(tmp_path / "other")
    with pytest.raises(ConfigError, match="no directory"):
        folders.contents(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be brought"):
        folders.unpack(tmp_path / "nothing", tmp_path / "b")


def test_records_of_another_version_are_not_read(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "one", writable=True)
    segment.append(name(0), ORIGIN, page(0))
    segment.close()
    with (tmp_path / "one").open("r+b") as file:
        file.seek(4)
        file.write(b"\xff")
    assert not Segment(tmp_path / "one", writable=False).records


def test_one_that_ends_rests_until_its_last_job_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look again and again, though there is news that nobody has asked for."""
    looks, go_on = [], Event()
    store = ThreadedStore(Tiers([HostShelf(1 << 20)]))
    store.submit_store([name(0)], [page(0)])
    eventually(store._news.is_set)
    store._pool.submit(go_on.wait)
    wait = store._news.wait
    monkeypatch.setattr(store._news, "wait", lambda seconds: looks.append(seconds) or wait(seconds))
    ending = Thread(target=store.close, args=(SECONDS,))
    ending.start()
    ending.join(0.05)
    go_on.set()
    ending.join()
    assert len(looks) < 10
