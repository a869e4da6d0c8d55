"""Who is chosen, and why."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from sapwood.base.errors import RequestError
from sapwood.route.ask import Ask
from sapwood.route.fleet import Replica, State
from sapwood.route.policies import policies
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server


def ask(headers: dict[str, str] | None = None, **body: Any) -> Ask:
    return Ask("/v1/chat/completions", json.dumps(body).encode(), headers or {}, session_header="x-session-id")


def replicas(*weights: float) -> list[Replica]:
    made = [Server(url=f"http://{name}", weight=weight) for name, weight in zip("abcdefgh", weights, strict=False)]
    return [Replica(server, server.url, server.shown, models=frozenset("m")) for server in made]


def chosen(name: str, prefixes: Prefixes | None = None) -> Any:
    return policies(Prefixes() if prefixes is None else prefixes, rng=random.Random(0))[name]


def test_turns_go_by_weight_and_nobody_who_comes_back_has_to_catch_up() -> None:
    three, policy = replicas(1, 2, 1), chosen("round_robin")
    counts = Counter(policy.choose(ask(), three).replica.name for _ in range(40))
    assert counts == {"a": 10, "b": 20, "c": 10}
    for _ in range(20):
        policy.choose(ask(), three[:2])
    again = Counter(policy.choose(ask(), three).replica.name for _ in range(8))
    assert again["c"] <= 3


@pytest.mark.parametrize("name", ["least_load", "power_of_two"])
def test_less_load_is_preferred_by_weight(name: str) -> None:
    one, two = replicas(1, 4)
    one.running, two.running = 3, 8
    assert chosen(name).choose(ask(), [one, two]).replica is two
    two.running = 16
    assert chosen(name).choose(ask(), [one, two]).replica is one


def test_sessions_stay_where_they_are() -> None:
    four, policy = replicas(1, 1, 1, 1), chosen("session")
    asks = [ask({"x-session-id": str(number)}) for number in range(200)]
    before = [policy.choose(one, four) for one in asks]
    assert {found.reason for found in before} == {"session"}
    assert min(Counter(found.replica.name for found in before).values()) > 20
    after = [policy.choose(one, four[1:]).replica for one in asks]  # one has gone: only its own sessions move
    assert all(now is then.replica for now, then in zip(after, before, strict=True) if then.replica is not four[0])
    assert policy.choose(ask(user="u"), four).replica is policy.choose(ask(user="u"), four).replica
    assert policy.choose(ask(), four).reason == "no_session"


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({"x-session-id": "h", "cookie": "sid=c"}, {"user": "u"}, "h"),
        ({"cookie": "a=1; sid=c=d; b=2"}, {"user": "u"}, "c=d"),
        ({"cookie": "other=1"}, {"user": "u"}, "u"),
        ({}, {"conversation": {"id": "conv_1"}, "user": "u"}, "conv_1"),
        ({}, {"metadata": {"user_id": "agent_1"}}, "agent_1"),
        ({}, {"metadata": {"user_id": 3}, "conversation": None}, None),
        ({}, {"previous_response_id": "r", "metadata": []}, "r"),
    ],
)
def test_what_tells_that_requests_belong_together(
    headers: dict[str, str], fields: dict[str, Any], session: str | None
) -> None:
    asked = Ask("/v1/x", json.dumps(fields).encode(), headers, session_header="x-session-id", session_cookie="sid")
    assert asked.session == session == asked.changed(asked.body).session


def test_a_prompt_goes_where_its_beginning_is_unless_too_many_are_there() -> None:
    prefixes, two = Prefixes(), replicas(1, 1)
    policy = chosen("cache_aware", prefixes)
    history = [{"role": "system", "content": "be good " * 400}]
    first = policy.choose(ask(model="m", messages=history), two)
    assert first.reason == "new"
    prefixes.note(ask(model="m", messages=history).blocks, first.replica.name)
    for turn in range(6):
        history.append({"role": "user", "content": f"question {turn} " * 50})
        again = policy.choose(ask(model="m", messages=history), two)
        assert again == (first.replica, "cached")
        prefixes.note(ask(model="m", messages=history).blocks, first.replica.name)
    first.replica.running = 40
    moved = policy.choose(ask(model="m", messages=history), two)
    assert moved.replica is not first.replica and moved.reason == "balanced"
    prefixes.forget(first.replica.name)
    assert len(prefixes) == 0 and policy.choose(ask(model="m", messages=history), two).reason == "new"


def test_what_is_forgotten_first_is_the_end_of_the_oldest() -> None:
    prefixes = Prefixes(most=6)
    prefixes.note([1, 2, 3, 4], "a")
    prefixes.note([10, 11, 12, 13], "b")
    assert prefixes.held([1, 2, 3, 4], "ab") == {"a": 2, "b": 0}
    assert prefixes.held([10, 11, 12, 13], "ab") == {"a": 0, "b": 4}


def test_blocks_are_of_prompts_of_any_dialect_and_tell_models_apart() -> None:
    long = "word " * 300
    assert len(ask(prompt=long).blocks) == len(long) // 256 > 4
    assert ask(model="a", input=long).blocks[0] != ask(model="b", input=long).blocks[0]
    assert ask(system=long, messages=[]).blocks[:5] == ask(messages=[], system=long, max_tokens=3).blocks[:5]


@pytest.mark.parametrize("body", [b"[1]", b"{", b"nothing"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="no JSON object"):
        Ask("/v1/completions", body, {})


def test_one_that_fails_rests_longer_each_time_and_is_tried_by_one_request() -> None:
    now = 0.0
    replica = Replica(Server(url="http://a"), "http://a", "a", clock=lambda: now)
    for _ in range(3):
        assert replica.state is State.READY
        replica.failed()
    assert replica.state is State.RESTING and not replica.can_take()
    now = 1.1
    assert replica.state is State.TRIED and replica.can_take()
    replica.enters()
    assert not replica.can_take()
    replica.leaves()
    replica.failed()
    now = 2.5
    assert replica.state is State.RESTING
    now = 3.2
    replica.succeeded()
    assert replica.state is State.READY
