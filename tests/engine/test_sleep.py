"""Sleep: what the device held is given back and comes again, and nobody's answer is another for it."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from sapwood import LLM
from sapwood.base.errors import ModelError
from sapwood.base.weights import ALL
from sapwood.base.wire import Deltas, Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.executor.fake import FakeExecutor
from tests.engine.test_renewal import GREEDY, OPTIONS, PROMPTS, begun, said


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("level", [1, 2])
def test_the_same_is_said_afterwards(level: int, kernels: str, tiny_model: Path) -> None:
    engine = begun(tiny_model, cpu_kernels=kernels)
    wanted = said(engine)
    for _ in range(3):
        assert engine.control("sleep", {"level": level})["asleep"] == ["kv_cache", "weights"]
        assert engine.control("status")["paused"]
        assert engine.control("wake_up")["asleep"] == []
        assert said(engine) == wanted
    assert engine.stats().counters["sleeps"] == 3


def test_who_runs_goes_on(tiny_model: Path) -> None:
    engine = begun(tiny_model)
    wanted = said(engine)
    for id, prompt in enumerate(PROMPTS):
        engine.submit(Submit(id, prompt, GREEDY))
    found = [token for _ in range(4) for news in engine.step() for token in tokens_of(news)]
    assert found
    engine.control("sleep", {"level": 2})
    engine.submit(Submit(len(PROMPTS), PROMPTS[0], GREEDY))  # comes meanwhile
    assert engine.occupied and engine.idle and not engine.step()
    engine.control("wake_up")
    while not engine.idle:
        found += [token for news in engine.step() for token in tokens_of(news)]
    assert sorted(found) == sorted(token for one in (*wanted, wanted[0]) for token in one)


def tokens_of(news: Deltas) -> list[int]:
    assert all(delta.error is None for delta in news.deltas)
    return news.tokens + [token for delta in news.deltas for token in delta.tokens]


@pytest.mark.parametrize("depth", [0, 1])
def test_no_cell_is_read_that_was_written_before(depth: int, tiny_model: Path) -> None:
    options = OPTIONS | {"kv_cache_memory": 1 << 20, "depth": depth}
    engine = launch(from_options({"model": str(tiny_model)} | options), executor=FakeExecutor()).engine
    wanted = said(engine)
    for id, prompt in enumerate(PROMPTS):
        engine.submit(Submit(id, prompt, GREEDY))
    found: list[list[int]] = [[] for _ in PROMPTS]
    for turn in range(200):
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                found[id].append(token)
            for delta in news.deltas:
                assert delta.error is None
                found[delta.id] += delta.tokens
        if turn in (2, 5):
            engine.control("sleep")
            engine.control("wake_up")
    assert found == wanted and engine.audit() == 0


def test_a_part_at_a_time(tiny_model: Path) -> None:
    engine = begun(tiny_model)
    wanted = said(engine)
    assert engine.control("sleep", {"held": ["kv_cache"]})["asleep"] == ["kv_cache"]
    assert "error" not in engine.control("update_weights", {"path": str(tiny_model)})  # these are there
    assert engine.control("sleep", {"held": [*ALL]})["asleep"] == ["kv_cache", "weights"]
    assert "resume" in engine.control("update_weights", {"path": str(tiny_model)})["error"]
    assert engine.control("wake_up", {"held": ["weights"]})["asleep"] == ["kv_cache"]
    assert engine.control("status")["paused"]
    assert engine.control("wake_up")["asleep"] == []
    assert said(engine) == wanted


def test_weights_that_no_file_has_are_not_dropped(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), **OPTIONS)
    llm.update_weights(tiny_model, version="mine")
    with pytest.raises(ModelError, match=r"mine.*use level 1"):
        llm.sleep(level=2)
    llm.sleep()
    llm.wake_up()
    assert llm.generate(PROMPTS, GREEDY)[0].token_ids


def rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("level", [1, 2])
def test_memory_stays_flat(level: int, tiny_model: Path) -> None:
    engine = begun(tiny_model, max_total_tokens=65536)  # 64 MiB of keys and values
    said(engine)
    sizes, asleep = [], []
    for _ in range(12):
        engine.control("sleep", {"level": level})
        asleep.append(rss())
        engine.control("wake_up")
        said(engine)
        gc.collect()
        sizes.append(rss())
    assert sizes[-1] - sizes[2] < 16 << 20, sizes
    assert max(asleep[2:]) - min(asleep[2:]) < 16 << 20, asleep


def test_pages_in_the_hosts_memory_outlive_sleep(tiny_model: Path) -> None:
    engine = begun(tiny_model, kv_store="host:64M")
    wanted = said(engine)
    before = engine.stats().counters["cached_tokens"]
    for level in (1, 2):
        engine.control("sleep", {"level": level})
        engine.control("wake_up")
        assert said(engine) == wanted
    assert engine.stats().counters["restored_pages"] >= 0
    assert engine.stats().counters["cached_tokens"] >= before


def test_seconds_are_counted(tiny_model: Path) -> None:
    engine, began = begun(tiny_model), time.perf_counter()
    engine.control("sleep")
    engine.control("wake_up")
    seconds = engine.stats().seconds
    assert 0 < seconds["sleep_seconds"] + seconds["wake_seconds"] <= time.perf_counter() - began
