"""Several engines behind one face: each request is with one of them, questions go to all, and one that dies costs only its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood import LLM, AsyncLLM, SamplingParams
from sapwood.base.endpoints import endpoint_of
from sapwood.base.errors import ConfigError, EngineDead, Overloaded, UserError
from sapwood.base.histogram import Histogram
from sapwood.base.media import Media, Span
from sapwood.base.wire import Control, Delta, Deltas, Reply, Stats, Submit, ToEngine
from sapwood.config.flags import from_options
from sapwood.engine import keeper, replicas, spawn
from sapwood.engine.client import AsyncEngine, copies
from sapwood.engine.following import Bell
from sapwood.engine.merged import added, reply_of, stats_of
from sapwood.engine.replicas import Replicas
from tests.engine import fake_process
from tests.facts import make_facts
from tests.waiting import within

FACTS = make_facts(max_model_len=4096, media=("image",))
ONE = SamplingParams(max_tokens=1)


class Wires:
    """Engines whose other ends are lists."""

    def __init__(self, count: int = 2, *, max_live: int = 99) -> None:
        self.sent: list[list[ToEngine]] = [[] for _ in range(count)]
        self.engines = [AsyncEngine(sent.append, FACTS, max_live=max_live) for sent in self.sent]
        self.all = Replicas(self.engines)

    def submits(self, number: int) -> list[Submit]:
        return [one for one in self.sent[number] if isinstance(one, Submit)]

    def answer(self, number: int, body: dict[str, Any]) -> None:
        """The last question."""
        asked = [one for one in self.sent[number] if isinstance(one, Control)][-1]
        self.engines[number].receive([Reply(asked.id, body)])

    def finish(self, number: int, token: int) -> None:
        for one in self.submits(number):
            self.engines[number].receive([Deltas([], [], [Delta(one.id, [token], finish="length")])])


def test_outputs_of_one_request_stay_together_and_others_go_elsewhere() -> None:
    async def scenario() -> None:
        wires, tokens, bell = Wires(), list(range(64)), Bell()
        for one in copies(SamplingParams(n=5)):
            wires.all.submit(tokens, one, bell, salt="a")
        wires.all.submit(list(range(64)), ONE, Bell(), salt="a")
        assert sorted(len(wires.submits(number)) for number in range(2)) == [1, 5]
        wires.engines[0].receive([Stats(1, 0, {}, {}, [])])
        stats = wires.all.stats
        assert stats is not None
        placed = {name: count for name, count in stats.counters.items() if name.startswith("placed_")}
        assert placed == {"placed_new": 1, "placed_together": 4, "placed_balanced": 1}

    asyncio.run(scenario())


def test_other_images_behind_the_same_places_are_other_prompts() -> None:
    async def scenario() -> None:
        wires, tokens, spans = Wires(), [7] * 2048, [Span(0, 2048, 0)]
        images = [Media.of("image", {"pixels": np.full(3, shade, np.uint8)}, 2048) for shade in (1, 1, 2)]
        for one in images:
            wires.all.submit(list(tokens), ONE, Bell(), media=[one], spans=spans)
        digests = [[one.media[0].digest for one in wires.submits(number)] for number in range(2)]
        assert sorted(digests, key=len) == [[images[2].digest], [images[0].digest] * 2]

    asyncio.run(scenario())


def test_weights_that_one_refuses_none_takes() -> None:
    about = {"path": "/new", "whole": True, "checksums": {"a": "0"}}

    async def scenario() -> None:
        wires = Wires()
        controls = lambda number: [one.what for one in wires.sent[number] if isinstance(one, Control)]  # noqa: E731

        async def answered(*bodies: dict[str, Any]) -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            for number, body in enumerate(bodies):
                wires.answer(number, body)

        task = asyncio.ensure_future(wires.all.control("update_weights", about))
        await answered({"weight_version": "default"}, {"error": "not here", "weight_version": "default"})
        assert (await task)["error"] == "not here"
        assert controls(0) == controls(1) == ["check_weights"]

        task = asyncio.ensure_future(wires.all.control("update_weights", about))
        await answered({"weight_version": "default"}, {"weight_version": "default"})
        await answered({"weight_version": "1", "seconds": 1.0}, {"weight_version": "1", "seconds": 3.0})
        assert await task == {"weight_version": "1", "seconds": 3.0} and wires.all.weight_version == "1"
        last = wires.sent[0][-1]
        assert isinstance(last, Control) and last.about["version"] == "1" and last.about["checksums"] == {}

        task = asyncio.ensure_future(wires.all.control("update_weights", about | {"version": "x"}))
        await answered({"weight_version": "1"}, {"weight_version": "1"})
        await answered({"error": "gone", "weight_version": "1"}, {"weight_version": "x", "seconds": 3.0})
        error = (await task)["error"]
        assert "gone" in error and "0 of 2 engines" in error and "version x" in error
        for _ in range(4):
            wires.all.submit([1] * 40, ONE, Bell())
        assert len(wires.submits(1)) == 4 and wires.all.weight_version == "x"
        wires.engines[1].die("too", 1.0)  # better old weights than none
        wires.all.submit([1] * 40, ONE, Bell())
        assert len(wires.submits(0)) == 1 and wires.all.weight_version == "1"
        wires.engines[1].revive(wires.sent[1].append, FACTS)
        assert {one.weight_version for one in wires.engines} == {"1", "default"}

    asyncio.run(scenario())


def test_one_that_dies_costs_only_its_own() -> None:
    async def scenario() -> None:
        wires = Wires()
        streams = [wires.all.submit([number] * 40, ONE, Bell()) for number in range(4)]
        assert [len(wires.submits(number)) for number in range(2)] == [2, 2]
        wires.engines[0].receive([Stats(2, 0, {"output_tokens": 7}, {}, [[9, 1, 1]])])
        wires.engines[1].receive([Stats(2, 0, {"output_tokens": 5}, {}, [[9, 2, 2]])])
        stats = wires.all.stats
        assert stats is not None and stats.pages == [[18, 3, 3]] and stats.running == 4
        wires.engines[0].die("struck by lightning", 1.0)
        wires.finish(1, 7)
        ended = []
        for stream in streams:
            try:
                ended.append(stream.take())
            except EngineDead:
                ended.append(None)
        assert [one is None for one in ended].count(True) == 2
        assert wires.all.dead is None and wires.all.retry_after is None and await wires.all.trouble() is None
        for _ in range(3):
            wires.all.submit([1] * 40, ONE, Bell())
        assert len(wires.submits(0)) == 2, "nothing goes to the dead"
        after = wires.all.stats
        assert after is not None and after.counters["output_tokens"] == 12 and after.running == 2
        wires.engines[0].revive(wires.sent[0].append, FACTS)
        wires.engines[0].receive([Stats(0, 0, {"output_tokens": 1}, {}, [])])
        again = wires.all.stats
        assert again is not None and again.counters["output_tokens"] == 13 and wires.all.restarts == 1
        wires.engines[0].die("again")
        assert not wires.all.lost.is_set()
        wires.engines[1].die("too")
        assert wires.all.lost.is_set() and wires.all.dead == "again; too" and wires.all.stats is None
        with pytest.raises(EngineDead):
            wires.all.submit([1], ONE, Bell())
        with pytest.raises(EngineDead):
            await wires.all.control("status")

    asyncio.run(scenario())


def test_one_that_is_full_is_left_out() -> None:
    async def scenario() -> None:
        wires = Wires(max_live=2)
        for _ in range(4):
            wires.all.submit([1] * 2000, ONE, Bell())
        assert [len(wires.submits(number)) for number in range(2)] == [2, 2]
        with pytest.raises(Overloaded):
            wires.all.submit([1], ONE, Bell())

    asyncio.run(scenario())


def test_one_that_has_gone_just_now_is_found_out() -> None:
    async def scenario() -> None:
        wires = Wires()

        def gone(message: ToEngine) -> None:
            raise EngineDead("gone", retry_after=1.0)

        wires.engines[0]._send = wires.engines[1]._send = gone
        with pytest.raises(EngineDead):
            wires.all.submit([1], ONE, Bell())
        wires.engines[1]._send = wires.sent[1].append
        for _ in range(2):
            wires.all.submit([1], ONE, Bell())
        assert len(wires.submits(1)) == 2 and wires.engines[0].live == 0

    asyncio.run(scenario())


def test_questions_go_to_all() -> None:
    async def scenario() -> None:
        wires = Wires()
        asked = asyncio.create_task(wires.all.control("flush_cache"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wires.answer(0, {"freed_pages": 3})
        wires.answer(1, {"freed_pages": 4})
        assert await within(asked) == {"freed_pages": 7}
        asked = asyncio.create_task(wires.all.control("status"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wires.engines[0].die("struck", 1.0)
        wires.answer(1, {"running": 1, "paused": True})
        assert await within(asked) == {"running": 1, "paused": True}

    asyncio.run(scenario())


def test_a_new_engine_stands_still_as_the_others_do() -> None:
    """And gets no request before it does."""

    async def scenario() -> None:
        wires = Wires()
        asked = asyncio.create_task(wires.all.control("pause"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in range(2):
            wires.answer(number, {"held": 0})
        assert await within(asked) == {"held": 0}
        wires.engines[0].die("struck", 1.0)
        wires.engines[0].revive(wires.sent[0].append, FACTS)
        for _ in range(3):
            wires.all.submit([1], ONE, Bell())
        assert not wires.submits(0)
        await asyncio.sleep(0)
        assert [one.what for one in wires.sent[0] if isinstance(one, Control)] == ["pause", "pause"]
        wires.answer(0, {"held": 0})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wires.all.submit([1], ONE, Bell())
        assert wires.submits(0)
        await wires.all.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("what", "bodies", "whole"),
    [
        ("explain", [{"cached": 16, "differs": 20}, {"cached": 48, "differs": 50}], {"cached": 48, "differs": 50}),
        ("tree", [{"done": True, "tree": 1}, {"done": False}], {"done": True, "tree": 1}),
        ("pause", [{"held": 1}, {"error": "unknown"}], {"error": "unknown"}),
        ("status", [{"pages": [[1, 2, 3]], "x": 1}, {"pages": [[1, 1, 1]]}], {"pages": [[2, 3, 4]], "x": 1}),
    ],
)
def test_answers_of_several(what: str, bodies: Sequence[dict[str, Any]], whole: dict[str, Any]) -> None:
    assert reply_of(what, bodies) == whole


def test_what_is_live_in_several() -> None:
    told = {"lanes": [{"slot": 1}], "running": 1, "waiting": 0, "counters": {"steps": 2}, "seconds": {}, "pages": []}
    told["histograms"] = {"step_seconds": {"": [[1.0], [1, 0], 0.5]}}
    found = reply_of("live", [told, told])
    assert found["lanes"] == [{"slot": 1, "replica": 0}, {"slot": 1, "replica": 1}]
    assert found["running"] == 2 and found["counters"] == {"steps": 4}
    assert found["histograms"]["step_seconds"][""].counts == [2, 0]


def test_what_is_added_up() -> None:
    assert added([{"a": 1, "b": [1, 2]}, {"a": 2.5, "b": [1], "c": "x"}]) == {"a": 3.5, "b": [2, 2], "c": "x"}
    assert added([True, False]) is False
    seen = Histogram((1.0,), [1, 2], 3.0)
    both = stats_of([Stats(0, 0, {}, {}, [], {"x": {"": seen}})] * 2)
    assert both.histograms["x"][""].counts == [2, 4] and seen.counts == [1, 2]


def test_each_tells_at_a_place_of_its_own() -> None:
    assert endpoint_of("tcp://*:5557", 0) == "tcp://*:5557" and endpoint_of("tcp://*:5557", 2) == "tcp://*:5559"
    assert endpoint_of("ipc:///tmp/x", 1) == "ipc:///tmp/x_dp1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data_parallel_size": 2}, "`sapwood serve` and AsyncLLM"),
        ({"data_parallel_size": 2, "data_parallel_rank": 2}, r"must be in \[0, 1\]"),
        ({"data_parallel_size": 0}, "at least 1"),
        ({"data_parallel_size": 2, "data_parallel_rank": 0, "kv_store": "file:/tmp/nowhere?size=1G"}, "a directory"),
        (
            {
                "data_parallel_size": 2,
                "data_parallel_rank": 0,
                "kv_events_config": '{"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}',
            },
            "2 ports apart, got 5557 and 5558: take another replay_endpoint, such as tcp://.*:5657",
        ),
    ],
)
def test_what_is_refused(tiny_model: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LLM(str(tiny_model), device="cpu", **options)


@pytest.mark.parametrize("size", [0, -1])
def test_fewer_engines_than_one_are_refused(tiny_model: Path, size: int) -> None:
    async def scenario() -> None:
        async with replicas.start(from_options({"model": str(tiny_model), "data_parallel_size": size})):
            raise AssertionError

    with pytest.raises(UserError, match="--data-parallel-size must be at least 1"):
        asyncio.run(within(scenario()))


def test_processes_that_die_are_followed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(keeper, "_PAUSES", (0.0,))
        monkeypatch.setattr(spawn, "COMMAND", (sys.executable, fake_process.__file__, "answers", str(tmp_path)))
        async with replicas.start(from_options({"model": "none", "data_parallel_size": 2})) as engine:
            assert isinstance(engine, Replicas) and len(engine.replicas) == 2 and engine.facts.max_num_seqs == 16
            last = int((tmp_path / "begun").read_text())
            os.kill(last, signal.SIGKILL)
            while engine.restarts == 0 or any(one.dead for one in engine.replicas):
                with contextlib.suppress(EngineDead):  # which those hear that went there before it was known
                    assert [t async for delta in engine.generate([1, 2], ONE) for t in delta.tokens] == [7]
                await asyncio.sleep(0.01)
            assert await within(engine.control("status")) == {"did": "status"}
        assert all(one.dead for one in engine.replicas)

    asyncio.run(within(scenario()))


def test_an_engine_that_cannot_start_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(spawn, "COMMAND", (sys.executable, fake_process.__file__, "serves,breaks", str(tmp_path)))
        with pytest.raises(EngineDead, match="exit code 7"):
            async with replicas.start(from_options({"model": "none", "data_parallel_size": 2})):
                pass

    asyncio.run(within(scenario()))


def test_two_say_what_one_says(tiny_model: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "max_model_len": 200, "max_num_seqs": 4, "kv_cache_memory": "16M"}
    prompts = ["The quick brown fox jumps over the lazy dog", "A", "zebra", "The quick brown fox sleeps"]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)

    async def scenario() -> tuple[list[str], list[int]]:
        async with AsyncLLM(str(tiny_model), data_parallel_size=2, **options) as llm:
            found = await asyncio.gather(*(llm.generate(prompt, params) for prompt in prompts))
            again = await llm.generate(prompts[0], params)
            assert again.text == found[0].text and again.cached_tokens > 0, "it went where its beginning was"
            status = [await one.control("status") for one in llm.engine.replicas]
            return [one.text for one in found], [one["finished"] for one in status]

    texts, finished = asyncio.run(within(scenario()))
    assert texts == [one.text for one in LLM(str(tiny_model), **options).generate(prompts, params)]
    assert sum(finished) == 5 and min(finished) > 0
