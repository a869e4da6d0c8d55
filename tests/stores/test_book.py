"""Who has which block, for how long: whatever is done in whatever order, no block has two pages, and none is lost."""

from __future__ import annotations

import random

import pytest

from sapwood.stores.handoff.book import Book

BLOCKS, TICKETS, PAGES = [5, 3], "abcd", 9


class Shadow:
    """What may be known from outside: pages that are on their way, and where those are that a peer was told of."""

    def __init__(self) -> None:
        self.now = 0.0
        self.book = Book(BLOCKS, seconds=10.0, clock=lambda: self.now)
        self.moving: list[tuple[bytes, int, int]] = []
        self.held: dict[tuple[int, int], bytes] = {}  # the page that was put last in a group's block

    def do(self, rng: random.Random) -> None:
        ticket, page = rng.choice(TICKETS), rng.randrange(PAGES)
        group = page % 2
        key = bytes((page, group))
        match rng.choice(("open", "close", "put", "put", "put", "ready", "find", "let go", "time", "tidy")):
            case "open":
                self.book.open(ticket)
            case "close":
                self.book.close(ticket)
            case "put":
                if (block := self.book.put(ticket, key, group)) is not None:
                    assert all((group, block) != (of, at) for _, of, at in self.moving), "a copy is on its way there"
                    self.held[group, block] = key
                    self.moving.append((key, group, block))
            case "ready":
                self.book.ready([one for one, _, _ in self.moving])
                self.moving.clear()
            case "find":
                keys = [bytes((page, page % 2)) for page in range(PAGES)]
                blocks, state = self.book.find(ticket, keys)
                assert state != "unknown" or set(blocks) == {-1}
                for found, block in zip(keys, blocks, strict=True):
                    assert block < 0 or self.held[found[-1], block] == found
                assert self.book.hold(ticket) == (state != "unknown")
            case "let go":
                self.book.let_go(ticket, taken=rng.random() < 0.5)
                assert not self.book.hold(ticket)
            case "time":
                self.now += rng.choice((1.0, 11.0))
            case "tidy":
                self.book.tidy()


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_done(seed: int) -> None:
    rng, shadow = random.Random(seed), Shadow()
    for _ in range(120):
        shadow.do(rng)
    book = shadow.book
    book.ready([one for one, _, _ in shadow.moving])
    for ticket in TICKETS:
        book.let_go(ticket, taken=True)
    assert book.num_held == 0 and [sorted(free) for free in book._free] == [list(range(count)) for count in BLOCKS]


def test_a_ticket_lives_while_it_is_asked_about_and_while_somebody_computes_for_it() -> None:
    shadow = Shadow()
    book = shadow.book
    book.open("a")
    shadow.now = 100.0
    assert book.hold("a")
    book.close("a")
    for _ in range(3):
        shadow.now += 9.0
        assert book.hold("a")
    shadow.now += 11.0
    assert not book.hold("a") and book.find("a", []) == ([], "unknown")
    book.tidy()
    assert book.counts["expired"] == 1
