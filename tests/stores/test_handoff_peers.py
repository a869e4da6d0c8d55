"""Who engines hear of prompts from: whoever requests name, and whoever connects."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from sapwood.base.handoff import Fetch, Offer
from sapwood.stores.handoff import FetchStake, TransferError
from sapwood.stores.handoff.book import Book
from sapwood.stores.handoff.peers import Ticket
from sapwood.stores.handoff.wire import Hello, Line, Refused
from tests.stores.sides import PATIENCE, PROMPT, Side, fetch, freed, full, side, stake


def test_several_prompts_of_one_ticket(pair: tuple[Side, Side, Side]) -> None:
    """Nothing is left of where their pages were, whoever of them is done first."""
    ahead, behind, _ = pair
    prompts = [[16, *PROMPT], [17, *PROMPT]]
    for prompt in prompts:
        ahead.run(ahead.ask(prompt, Offer("several")))
    for number in [behind.ask(prompt, fetch(ahead, "several")) for prompt in prompts]:
        assert behind.run(number)[2] == full(prompts[0])
    freed(ahead)
    store = stake(behind, FetchStake)._store
    assert not store._where and not store._noted


def test_peers_that_requests_make_up_are_forgotten(
    pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may name any port of the own host: each of these has a thread for as long as it is remembered. Who could be reached is
    remembered longest."""
    monkeypatch.setattr("sapwood.stores.handoff.peers._MOST_PEERS", 3)
    ahead, behind, _ = pair
    ahead.run(ahead.ask([18, *PROMPT], Offer("true")))
    assert behind.run(behind.ask([18, *PROMPT], fetch(ahead, "true")))[2]
    store = stake(behind, FetchStake)._store
    for port in range(1, 9):
        behind.run(behind.ask([19, port, *PROMPT], Fetch("made up", "127.0.0.1", port)))
    door = ahead.facts.door
    assert door is not None and (door.host, door.port) in store._peers
    until = monotonic() + PATIENCE
    while not all(one.idle for one in store._peers.values()):
        assert monotonic() < until
    store.find(Ticket("127.0.0.1", 9, "made up"), [])
    assert len(store._peers) == 3


def test_a_peer_that_tells_of_other_pages(pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Book, "find", lambda *_: ([], "open"))
    ahead, behind, _ = pair
    assert behind.run(behind.ask([20, *PROMPT], fetch(ahead, "short")))[2] == 0


def test_who_does_not_say_who_it_is_is_hung_up_on(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they take nobody's place for good."""
    monkeypatch.setattr("sapwood.stores.handoff.listener._HELLO_SECONDS", 0.05)
    monkeypatch.setattr("sapwood.stores.handoff.listener.MOST_PEERS", 1)
    with side(llama, "prefill") as ahead:
        door = ahead.facts.door
        assert door is not None
        with socket.create_connection((door.host, door.port)) as silent:
            silent.settimeout(PATIENCE)
            assert silent.recv(1) == b""
        until, answer = monotonic() + PATIENCE, None
        while answer is None:  # the place is free a moment later
            assert monotonic() < until
            line = Line.to(door.host, door.port, connect=1.0, seconds=PATIENCE)
            with suppress(TransferError):
                line.send(Hello(99, b"", {}))
                answer = line.receive()
            line.close()
        assert isinstance(answer, Refused)


def test_a_peer_that_says_nonsense(pair: tuple[Side, Side, Side]) -> None:
    """Neither side minds."""
    ahead, _, _ = pair
    door = ahead.facts.door
    assert door is not None
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc1", b"\0\0"):
        with socket.create_connection((door.host, door.port)) as one:
            one.settimeout(PATIENCE)
            one.sendall(nonsense)
            with suppress(OSError):  # it has hung up already
                one.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert one.recv(1) == b""
    line = Line.to(door.host, door.port, connect=1.0, seconds=PATIENCE)
    line.send(Hello(99, b"", {}))
    answer = line.receive()
    line.close()
    assert isinstance(answer, Refused) and answer.why.startswith("protocol")


def test_a_prompt_is_gone_through_when_something_has_come(
    pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with every answer that there is nothing yet, which would hold up all who run."""
    ahead, behind, _ = pair
    going = stake(behind, FetchStake)
    store, arrivals, asked, through = going._store, going._arrivals, [], []
    store.close(0.0)
    store._peers.clear()  # one that has failed is left alone for a while
    find, wanted = store.find, arrivals._wanted
    monkeypatch.setattr(store, "find", lambda *given: asked.append(1) or find(*given))
    monkeypatch.setattr(arrivals, "_wanted", lambda request: through.append(1) or wanted(request))
    prompt = [21, *PROMPT]
    mine = behind.ask(prompt, fetch(ahead, "late", early=True))
    until = monotonic() + PATIENCE
    while len(asked) < 3:
        assert monotonic() < until
        behind.turn()
    assert not through
    ahead.run(ahead.ask(prompt, Offer("late")))
    assert behind.run(mine)[2] == full(prompt) and through
