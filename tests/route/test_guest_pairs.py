"""Guests together: every pair of what the router can do with a request does both."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sapwood.config.options import ServerConfig
from sapwood.route.app import Router
from sapwood.route.table import read
from tests.route.mock import Mock, routed
from tests.route.test_context import agent
from tests.route.test_proxy import CHAT, run
from tests.route.test_semantic import Reader

Bodies = list[dict[str, Any]]
Headers = list[Mapping[str, str]]


class Feature(NamedTuple):
    """Parts of a table and of a body, options of the router, and whether two equal requests were treated so: what the servers were sent, and the
    headers of the answers."""

    table: Mapping[str, Any]
    body: Mapping[str, Any]
    holds: Callable[[Bodies, Headers], bool]
    options: Mapping[str, Any] = {}


HISTORY = [
    *agent(random.Random(4), 25),
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and a cat?"},
]
RULES = {
    "signal": {
        "pets": {"kind": "examples", "like": ["a cat"], "at_least": 0.9},
        "thought": {"kind": "reasoning"},
    },
    "meaning": {"model": "vectors", "timeout": 20},
}

FEATURES: Mapping[str, Feature] = {
    "rules": Feature(
        RULES | {"auto": {"auto": {"to": ["none"], "rule": [{"name": "thought", "any": ["thought"], "to": ["m"]}]}}},
        {"model": "auto", "reasoning_effort": "high"},
        lambda bodies, headers: headers[0]["x-sapwood-rule"].startswith("thought; 1.00") and bodies[0]["model"] == "m",
    ),
    "answers": Feature(
        {"answers": {"models": ["auto", "m", "fast"], "at_least": 1.0}},
        {"temperature": 0},
        lambda bodies, headers: len(bodies) == 1 and headers[1]["x-sapwood-cache"] == "exact; 1.0000",
    ),
    "context": Feature(
        {"context": {"*": {"budget": 4000}}},
        {"messages": HISTORY},
        lambda bodies, headers: "drop" in headers[0]["x-sapwood-context"] and len(bodies[0]["messages"]) < len(HISTORY),
    ),
    "alias": Feature(
        {"model": {"fast": {"to": ["m"], "policy": "round_robin"}}},
        {"model": "fast"},
        lambda bodies, headers: bodies[0]["model"] == "m",
    ),
    "stream": Feature(
        {},
        {"stream": True},
        lambda bodies, headers: headers[0]["content-type"].startswith("text/event-stream"),
    ),
    "paths": Feature(
        {"paths": {"/v1/embeddings": "vectors"}, "apply": [{"model": "m"}]},
        {},
        lambda bodies, headers: bodies[0]["model"] == "m",
    ),
    "keys": Feature({}, {}, lambda bodies, headers: True, {"api_key": "k"}),
}

PAIRS = [
    pair for pair in combinations(FEATURES, 2) if pair != ("rules", "alias")
]  # of one name; below, rules lead to aliases


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_pairs(one: str, two: str) -> None:
    both = FEATURES[one], FEATURES[two]
    table = both[0].table | both[1].table
    body = {"model": "m", "messages": [{"role": "user", "content": "a cat"}], **both[0].body, **both[1].body}
    options = {**both[0].options, **both[1].options}

    async def case() -> None:
        m = Mock("m")
        headers: Headers = []
        async with routed(m, Reader("reader", ("vectors",)), table=table, **options) as (client, _):
            for _ in range(2):
                async with client.post(CHAT, json=body, headers={"x-api-key": "k"}) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                    headers.append({name.lower(): value for name, value in answer.headers.items()})
        for name, feature in ((one, both[0]), (two, both[1])):
            assert feature.holds(m.bodies, headers), (name, headers)

    run(case())


def test_rules_lead_to_aliases_and_budgets_are_of_what_these_stand_for() -> None:
    async def case() -> None:
        table = FEATURES["alias"].table | {
            "auto": {"auto": {"to": ["fast"], "rule": []}},
            "context": {"m": {"budget": 4000}},
        }
        m = Mock("m")
        async with routed(m, table=table) as (client, _):
            async with client.post(CHAT, json={"model": "auto", "messages": HISTORY}) as answer:
                assert answer.status == 200 and "drop" in answer.headers["x-sapwood-context"]
                assert answer.headers["x-sapwood-route"].startswith("round_robin")
            assert m.bodies[0]["model"] == "m"

    run(case())


def test_a_table_that_is_read_again_changes_the_rules(tmp_path: Path) -> None:
    async def case() -> None:
        path = tmp_path / "table.toml"
        server = '[[server]]\nurl = "http://127.0.0.1:9"\nmodels = ["m"]\n'
        path.write_text(server)
        router = Router(read(path), ServerConfig(), path, every=5.0)
        async with router.serving():
            assert "auto" not in router.fleet.models()
            path.write_text(f'{server}[auto.auto]\nto = ["m"]\n')
            await router.read_again()
            assert "auto" in router.fleet.models()

    run(case())
