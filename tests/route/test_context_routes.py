"""Histories that are shortened on their way through a router, and by the route that shows it."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.route.mock import Mock, routed
from tests.route.test_context import agent
from tests.route.test_proxy import CHAT, run

COMPACT = "/v1/context/compact"


class Counting(Mock):
    """Counts words as tokens, and sums up."""

    counted = 0
    summed = 0
    tells: int | None = None  # in place of a count

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if self.way == "answers" and request.path == "/tokenize":
            self.counted += 1
            if self.tells is not None:
                return web.Response(status=self.tells)
            return web.json_response({"count": len(body["prompt"].split()), "tokens": []})
        if self.way == "answers" and body["model"] == "writer":
            self.summed += 1
            self.bodies.append(body)
            await asyncio.sleep(0)
            said = {"content": f"facts {self.summed}"}
            return web.json_response({"choices": [{"message": said}]})
        return await super()._answer(request)


TABLE: dict[str, Any] = {
    "context": {
        "m": {
            "budget": 4000,
            "steps": ["file_reads", "tool_outputs", "summary"],
            "summary_model": "writer",
            "summary_tokens": 100,
        },
        "*": {"budget": 100_000},
    }
}


def test_long_histories_are_shortened_and_begin_the_same_next_time() -> None:
    async def case() -> None:
        m, writer = Mock("m"), Counting("writer", ("writer", "other"))
        messages = agent(random.Random(3), 30)
        async with routed(m, writer, table=TABLE) as (client, router):
            for end in (2, len(messages) - 4, len(messages) - 4, len(messages)):
                body = {"model": "m", "messages": messages[:end], "temperature": 0.5}
                async with client.post(CHAT, json=body) as answer:
                    told = answer.headers.get("x-sapwood-context", "")
                    assert answer.status == 200 and ("summary" in told) is (end > 2)
            assert m.bodies[0]["messages"] == messages[:2] and m.bodies[1] == m.bodies[2]
            assert m.bodies[1]["temperature"] == 0.5 and "facts 1" in json.dumps(m.bodies[1]["messages"])
            assert (
                writer.summed == 1 or m.bodies[3]["messages"][: len(m.bodies[1]["messages"])] != m.bodies[1]["messages"]
            )
            text = router.metrics.text().decode()
            assert 'sapwood_route_compacted_total{step="summary"} 3.0' in text
            other = {"model": "other", "messages": messages}
            async with client.post(CHAT, json=other) as answer:
                assert "x-sapwood-context" not in answer.headers
            assert writer.bodies[-1] == other  # untouched

    run(case())


def test_a_later_summary_goes_on_from_the_one_before() -> None:
    async def case() -> None:
        m, writer = Mock("m"), Counting("writer", ("writer",))
        messages = agent(random.Random(3), 60)
        async with routed(m, writer, table=TABLE) as (client, _):
            for end in range(40, len(messages), 20):
                async with client.post(CHAT, json={"model": "m", "messages": messages[:end]}) as answer:
                    assert answer.status == 200
            asked = [body["messages"][1]["content"] for body in writer.bodies]
            assert len(asked) > 1 and "What was before:\nfacts" in asked[-1] and "What was before" not in asked[0]

    run(case())


def test_anthropics_histories_are_shortened_too_and_keep_their_shape() -> None:
    async def case() -> None:
        m, writer = Mock("m"), Counting("writer", ("writer",))
        messages = agent(random.Random(3), 30, anthropic=True)
        async with routed(m, writer, table=TABLE) as (client, _):
            body = {"model": "m", "system": "be good", "max_tokens": 9, "messages": messages}
            async with client.post("/v1/messages", json=body) as answer:
                assert answer.status == 200 and "summary" in answer.headers["x-sapwood-context"]
            sent = m.bodies[0]
            assert sent["system"] == "be good" and sent["messages"][0]["role"] == "user"
            assert sent["messages"][-4:] == messages[-4:] and len(sent["messages"]) < len(messages)

    run(case())


def test_summaries_count_on_the_limits_of_who_needed_them(tmp_path: Path) -> None:
    async def case() -> None:
        keys = tmp_path / "keys.toml"
        keys.write_text('[[keys]]\nname = "t"\nkey = "k"\ntokens_per_minute = 1000\n')
        writer = Counting("writer", ("writer",))
        async with routed(Mock("m"), writer, table=TABLE, api_keys_file=str(keys)) as (client, _):
            statuses = []
            for path in (COMPACT, COMPACT, CHAT):
                body = {"model": "m", "messages": agent(random.Random(3), 30)}
                async with client.post(path, json=body, headers={"x-api-key": "k"}) as answer:
                    statuses.append(answer.status)
            assert statuses[0] == 200 and statuses[-1] == 429 and writer.summed == 1

    run(case())


@pytest.mark.parametrize("anthropic", [False, True])
def test_the_route_tells_what_it_did(anthropic: bool) -> None:
    async def case() -> None:
        messages = agent(random.Random(3), 30, anthropic=anthropic)
        async with routed(Mock("m"), Counting("writer", ("writer",)), table=TABLE) as (client, _):
            body = {
                "messages": messages,
                "model": "m",
                "budget": 6000,
                "steps": ["tool_outputs", "drop"],
                "system": "s",
            }
            async with client.post(COMPACT, json=body) as answer:
                told = await answer.json()
                assert answer.status == 200, told
            assert (
                told["fits"]
                and told["after"]["tokens"] <= 6000 < told["before"]["tokens"]
                and told["counted"] == "estimated"
            )
            assert {one["step"] for one in told["steps"]} <= {"tool_outputs", "drop"} and told["system"] == "s"
            assert (
                told["after"]["messages"] == len(told["messages"])
                and told["messages"][: told["unchanged"]] == messages[: told["unchanged"]]
            )
            async with client.post(COMPACT, json={"messages": told["messages"], "budget": 6000}) as answer:
                assert (await answer.json())["messages"] == told["messages"]

    run(case())


def test_a_server_counts_each_message_once_and_its_loss_is_told() -> None:
    async def case() -> None:
        m = Counting("m")
        messages = agent(random.Random(3), 10)
        async with routed(m, table={"context": {"m": {"budget": 300, "count": "tokenize"}}}) as (client, _):
            for extra in (0, 1):
                body = {
                    "model": "m",
                    "messages": [*messages, {"role": "user", "content": "x"}][: len(messages) + extra],
                }
                async with client.post(COMPACT, json=body) as answer:
                    told = await answer.json()
                assert told["counted"] == "tokenize" and told["steps"]
            counted = m.counted
            assert counted <= 3 * len(messages)
            m.way = "broken"
            body["messages"].append({"role": "user", "content": "y"})
            async with client.post(COMPACT, json=body) as answer:
                assert (await answer.json())["counted"] == "estimated"

    run(case())


@pytest.mark.parametrize(("status", "again"), [(500, False), (400, True)])
def test_who_does_not_count_is_not_asked_for_every_message(status: int, again: bool) -> None:
    """Else a server that hangs would hold a long history up for hours. What is wrong with one message is not its fault."""

    async def case() -> None:
        m = Counting("m")
        m.tells = status
        messages = agent(random.Random(3), 60)
        async with routed(m, table={"context": {"m": {"budget": 300, "count": "tokenize"}}}) as (client, _):
            for asks in (True, again):
                before = m.counted
                async with client.post(COMPACT, json={"model": "m", "messages": messages}) as answer:
                    assert (await answer.json())["counted"] == "estimated"
                assert (m.counted > before) is asks and m.counted - before < len(messages) / 2

    run(case())


def test_who_sums_up_too_slowly_is_not_waited_for_at_every_turn() -> None:
    async def case() -> None:
        m, writer = Mock("m"), Counting("writer", ("writer",))
        writer.way = "waits"
        writer.go_on.clear()
        context = {"m": TABLE["context"]["m"] | {"summary_timeout": 0.05}}
        async with routed(m, writer, table={"context": context}) as (client, _):
            for end in (-4, None):
                body = {"model": "m", "messages": agent(random.Random(3), 30)[:end]}
                async with client.post(CHAT, json=body) as answer:
                    assert answer.status == 200 and "drop" in answer.headers["x-sapwood-context"]
            assert len(writer.raw) <= 1
            writer.go_on.set()

    run(case())


def test_a_summary_that_cannot_be_had_stops_nobody() -> None:
    async def case() -> None:
        m, writer = Mock("m"), Counting("writer", ("writer",))
        writer.way = "broken"
        async with routed(m, writer, table=TABLE) as (client, router):
            body = {"model": "m", "messages": agent(random.Random(3), 30)}
            async with client.post(CHAT, json=body) as answer:
                assert answer.status == 200 and "drop" in answer.headers["x-sapwood-context"]
            assert "sapwood_route_summary_failed_total 1.0" in router.metrics.text().decode()
            assert "earlier messages were left out here" in json.dumps(m.bodies[0])

    run(case())


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [3], "budget": 100}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "budged": 100}, 400, "budged"),
        ({"messages": [{"role": "user", "content": "x"}], "budget": 1}, 400, "budget"),
        ({"messages": [{"role": "user", "content": "x"}], "budget": 100, "count": "tokenize"}, 400, "model"),
        ({"messages": [{"role": "user", "content": "x"}], "budget": 100, "steps": ["summary"]}, 400, "steps"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "budget"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], status: int, param: str) -> None:
    async def case() -> None:
        async with routed(Mock("m")) as (client, _), client.post(COMPACT, json=body) as answer:
            said = await answer.json()
            assert answer.status == status and said["error"]["param"] == param, said

    run(case())


def test_what_is_no_history_is_left_to_the_server() -> None:
    async def case() -> None:
        m = Mock("m")
        async with routed(m, table={"context": {"*": {"budget": 64}}}) as (client, _):
            for messages in (
                "word " * 500,
                [3, "word " * 500],
                [{"content": "word " * 500}],
                [{"role": "tool", "content": None}] * 90,
            ):
                async with client.post(CHAT, json={"model": "m", "messages": messages}) as answer:
                    assert answer.status == 200
            assert m.bodies[0]["messages"] == "word " * 500

    run(case())
