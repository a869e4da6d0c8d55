"""Answers that are given again to questions that mean the same, and to no others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sapwood.route.fleet import State
from sapwood.route.table import checked
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import CHAT, run
from tests.route.test_semantic import Reader

TABLE: dict[str, Any] = {
    "meaning": {"model": "vectors", "timeout": 20},
    "answers": {"models": ["m"], "at_least": 0.95, "most": 3},
}


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


async def found(client: Any, body: dict[str, Any], path: str = CHAT, key: str = "") -> str:
    """How the answer was found; "" if a server gave it."""
    async with client.post(path, json=body, headers={"x-api-key": key} if key else {}) as answer:
        assert answer.status == 200 and (await answer.read())
        return str(answer.headers.get("x-sapwood-cache", ""))


def test_the_same_and_the_like_are_answered_again() -> None:
    async def case() -> None:
        m = Mock("m")
        async with routed(m, Reader("reader", ("vectors",)), table=TABLE) as (client, router):
            assert await found(client, ask("a cat")) == ""
            assert await found(client, ask("a cat")) == "exact; 1.0000"
            assert (await found(client, ask("my cat"))).startswith("near; 1.0")
            assert await found(client, ask("a tax")) == ""
            assert len(m.bodies) == 2
            told = router.metrics.text().decode()
            for how, count in (("exact", 1.0), ("near", 1.0), ("none", 2.0)):
                assert f'sapwood_route_answers_total{{found="{how}"}} {count}' in told

    run(case())


def test_vectors_of_another_model_are_not_compared() -> None:
    async def case() -> None:
        reader = Reader("reader", ("vectors",))
        async with routed(Mock("m"), reader, table=TABLE) as (client, _):
            assert await found(client, ask("a cat")) == ""
            reader.words = ("cat", "tax")
            assert await found(client, ask("my cat")) == ""
            assert (await found(client, ask("one cat"))).startswith("near; 1.0")

    run(case())


@pytest.mark.parametrize(
    "other",
    [
        ask("a cat", temperature=1),
        ask("a cat", tools=[{"type": "function"}]),
        ask("a cat", max_tokens=3),
        ask("a cat", n=2),
        ask("a cat", user="somebody"),
        {**ask("a cat"), "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a cat"}]},
        {**ask("a cat"), "messages": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a cat"}]},
        {**ask("a cat"), "model": "vectors"},
    ],
)
def test_what_differs_in_anything_else_is_asked(other: dict[str, Any]) -> None:
    async def case() -> None:
        async with routed(Mock("m"), Reader("reader", ("vectors",)), table=TABLE) as (client, _):
            assert await found(client, ask("a cat")) == ""
            assert await found(client, other) == ""

    run(case())


def test_tenants_have_answers_of_their_own(tmp_path: Path) -> None:
    async def case() -> None:
        keys = tmp_path / "keys.toml"
        keys.write_text('[[keys]]\nname = "s"\nkey = "k1"\n[[keys]]\nname = "t"\nkey = "k2"\n')
        mocks = Mock("m"), Reader("reader", ("vectors",))
        async with routed(*mocks, table=TABLE, api_keys_file=str(keys)) as (client, _):
            ways = [await found(client, ask("a cat"), key=key) for key in ("k1", "k2", "k1", "k2")]
            assert ways == ["", "", "exact; 1.0000", "exact; 1.0000"]

    run(case())


def test_they_are_bounded_and_grow_old_and_are_off_by_default() -> None:
    async def case() -> None:
        async with routed(Mock("m"), Reader("reader", ("vectors",)), table=TABLE) as (client, _):
            for number in range(5):
                await found(client, ask("a cat", seed=number))
            assert await found(client, ask("a cat", seed=4)) == "exact; 1.0000"
            assert await found(client, ask("a cat", seed=0)) == ""
        short = TABLE | {"answers": {"models": ["m"], "at_least": 1.0, "seconds": 0.05}}
        m = Mock("m")
        async with routed(m, table=short) as (client, _):
            await found(client, ask("a cat"))
            while await found(client, ask("a cat")):  # until it is too old
                pass
            assert len(m.bodies) == 2
        async with routed(Mock("m")) as (client, _):
            assert [await found(client, ask("a cat")) for _ in range(2)] == ["", ""]

    run(case())


def test_streams_are_given_again_as_they_were_and_only_whole_ones() -> None:
    async def case() -> None:
        m = Mock("m")
        async with routed(m, Reader("reader", ("vectors",)), table=TABLE) as (client, _):
            bodies = []
            for _ in range(2):
                async with client.post(CHAT, json=ask("a cat", stream=True)) as answer:
                    bodies.append((answer.content_type, await answer.read()))
            assert bodies[0] == bodies[1] and bodies[0][1].endswith(b"[DONE]\n\n") and len(m.bodies) == 1
            assert await found(client, ask("a cat")) == ""  # another way to ask
            m.way = "cut"
            for _ in range(2):
                assert await found(client, ask("a tax", stream=True)) == ""
            assert len(m.bodies) == 4

    run(case())


def test_a_server_that_is_cut_off_again_and_again_rests() -> None:
    async def case() -> None:
        m = Mock("m")
        m.way = "cut"
        async with routed(m) as (client, router):
            for _ in range(3):
                async with client.post(CHAT, json=ask("a cat", stream=True)) as answer:
                    await answer.read()
            assert router.fleet.replicas["m"].state in (State.RESTING, State.TRIED)

    run(case())


def test_without_vectors_only_the_same_words_are_found() -> None:
    async def case() -> None:
        reader = Reader("reader", ("vectors",))
        async with routed(Mock("m"), reader, table=TABLE) as (client, router):
            reader.way = "broken"
            ways = [await found(client, ask(text)) for text in ("a cat", "a cat", "my cat")]
            assert ways == ["", "exact; 1.0000", ""]
            assert 'sapwood_route_answers_total{found="unknown"} 2.0' in router.metrics.text().decode()

    run(case())


def test_another_model_by_the_same_name_gives_answers_of_its_own() -> None:
    def table(to: str) -> dict[str, Any]:
        return {"model": {"fast": {"to": [to]}}, "answers": {"models": ["fast"], "at_least": 1}}

    async def case() -> None:
        a, b = Mock("a", ("x",)), Mock("b", ("y",))
        async with routed(a, b, table=table("x")) as (client, router):

            def changed() -> None:
                servers = [{"url": one.url, "name": one.name} for one in (a, b)]
                router.fleet.set_table(checked({"server": servers, **table("y")}, "a test"))

            body = ask("a cat", model="fast")
            assert [await found(client, body) for _ in range(2)] == ["", "exact; 1.0000"]
            a.way = "waits"
            a.go_on.clear()
            waiting = asyncio.create_task(found(client, ask("a dog", model="fast")))
            await until(lambda: len(a.bodies) == 2)
            changed()
            a.go_on.set()
            assert await waiting == ""
            for text in ("a cat", "a dog"):
                assert await found(client, ask(text, model="fast")) == ""
            assert len(b.bodies) == 2

    run(case())
