"""Who is where, how many are needed, and who is asked by handle."""

from __future__ import annotations

import json

import pytest

from sapwood.fleet.picking import Picking
from sapwood.fleet.register import SILENT_SECONDS, YOUNG_SECONDS, Register
from sapwood.fleet.scaling import Load, needed

PATH = "/v1/chat/completions"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_servers_come_and_go() -> None:
    clock = Clock()
    register = Register(clock)
    assert register.tell("a", "m", "", "node", Load(), ["starting"]) == {"drains": False, "queued": 0}
    assert register.urls("m") == []  # it is starting yet
    register.tell("a", "m", "http://a", "node", Load(running=2), ["ready"])
    register.tell("b", "m", "http://b", "node", Load(), [])
    register.tell("c", "other", "http://c", "node", Load(), [])
    assert register.urls("m") == ["http://a", "http://b"] and register.urls("nothing") == []
    register.leave("b")
    assert register.urls("m") == ["http://a"]
    clock.now += SILENT_SECONDS + 1
    register.tell("c", "other", "http://c", "node", Load(), [])
    assert register.urls("m") == [] and register.urls("other") == ["http://c"]
    assert register.logs("a", 10) == {"a": ["starting", "ready"]}  # also of those that have gone
    assert {one["name"]: one["state"] for one in register.state()["servers"]} == {
        "a": "gone",
        "b": "gone",
        "c": "ready",
    }
    register.tell("a", "m", "http://a", "node", Load(), [])  # it was only slow
    assert register.urls("m") == ["http://a"]


def test_who_has_left_is_not_there_again() -> None:
    """What it told before may be heard behind that; and one that drains goes on to, if it was silent for a while."""
    clock = Clock()
    register = Register(clock)
    for name in ("a", "b"):
        register.tell(name, "m", f"http://{name}", "node", Load(), [])
    register.drain("b")
    register.leave("a")
    register.tell("a", "m", "http://a", "node", Load(), ["its last words"])
    assert register.urls("m") == [] and register.logs("a", 1) == {"a": ["its last words"]}
    clock.now += SILENT_SECONDS + 1
    register.urls("m")
    assert register.tell("b", "m", "http://b", "node", Load(), [])["drains"] and register.urls("m") == []


def test_one_that_drains_gets_nothing_new() -> None:
    register = Register(Clock())
    for name in ("a", "b"):
        register.tell(name, "m", f"http://{name}", "node", Load(), [])
    assert register.drain("a") == ["a"] and register.drain("nobody") == []
    assert register.urls("m") == ["http://b"]
    assert register.tell("a", "m", "http://a", "node", Load(), [])["drains"]
    assert register.drain("m") == ["b"]  # the others of a model
    assert register.urls("m") == []


def test_what_waits_at_routers() -> None:
    clock = Clock()
    register = Register(clock)
    register.tell("a", "m", "http://a", "node", Load(), [])
    assert register.wants("r1", "http://r1", {"m": 3, "n": 0}) == {}  # it has not heard of all yet
    clock.now += YOUNG_SECONDS
    assert register.wants("r1", "http://r1", {"m": 3, "n": 0}) == {"m": ["http://a"], "n": []}
    register.wants("r2", "http://r2", {"m": 2})
    assert register.tell("a", "m", "http://a", "node", Load(), [])["queued"] == 5
    assert register.state()["routers"] == ["http://r1", "http://r2"]
    clock.now += SILENT_SECONDS + 1
    register.wants("r2", "http://r2", {"m": 1})
    assert register.queued("m") == 1 and register.state()["routers"] == ["http://r2"]


@pytest.mark.parametrize(
    ("loads", "tokens", "count"),
    [
        ([], None, 0),
        ([Load()], None, 0),
        ([Load(running=1)], None, 1),
        ([Load(running=16)], None, 1),
        ([Load(running=16, waiting=1)], None, 2),
        ([Load(running=20, queued=30), Load(running=10, queued=30)], None, 4),  # 30 and the 30 that wait for either
        ([Load(running=2, tokens=9_000)], 4_000.0, 3),
        ([Load(running=40, tokens=100)], 4_000.0, 3),
    ],
)
def test_how_many_are_needed(loads: list[Load], tokens: float | None, count: int) -> None:
    assert needed(loads, 16, tokens) == count


def chat(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def test_calls_by_handle_stay_with_their_prefix_as_far_as_load_allows() -> None:
    picking = Picking()
    long = chat("a question that is long enough for blocks " * 60)
    first = picking.order(["a", "b", "c"], PATH, long, {})
    assert sorted(first) == ["a", "b", "c"]
    home = first[0]
    picking.sent(home, "1", PATH, long, {})
    picking.done("1")
    assert all(picking.order(["a", "b", "c"], PATH, long, {})[0] == home for _ in range(10))
    for number in range(8):
        picking.sent(home, f"more-{number}", PATH, chat("short"), {})
    assert picking.running(home) == 8
    assert picking.order(["a", "b", "c"], PATH, long, {})[0] != home
    assert picking.order(["a", "b", "c"], PATH, long, {})[-1] == home  # it has most to do
    for number in range(8):
        picking.done(f"more-{number}")
        picking.done(f"more-{number}")  # told twice
    assert picking.running(home) == 0
    picking.forget(home)
    picking.done("1")
    others = [name for name in ("a", "b", "c") if name != home]
    assert picking.order(others, PATH, b"no JSON", {})[0] in others


def test_a_call_that_was_refused_and_sent_elsewhere_counts_once() -> None:
    picking = Picking("least_load")
    picking.sent("a", "1", PATH, b"{}", {})
    picking.sent("b", "1", PATH, b"{}", {})
    assert (picking.running("a"), picking.running("b")) == (0, 1)
    assert picking.order(["a", "b"], PATH, b"{}", {}) == ["a", "b"]
