"""Workloads served in process: the right prompts, counts that are right, failures that are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.arch import declare
from sapwood.base.plan import Outcome, Plan
from sapwood.base.slots import Slots
from sapwood.base.wire import Delta, Submit
from sapwood.bench import offline
from sapwood.bench.offline import Offline, Opened, WorkloadFailed
from sapwood.bench.target import measure
from sapwood.bench.traffic import Turn
from sapwood.bench.workloads import NAMED, Workload, decode
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine
from sapwood.executor.null import NullExecutor
from sapwood.scheduler import Scheduler
from tests import kv
from tests.facts import make_facts

TOKEN, LONGEST, VOCAB_SIZE = 7, 512, 10_000


class Failing(NullExecutor):
    """Loses its device at the given step."""

    def __init__(self, step: int) -> None:
        super().__init__(TOKEN)
        self.left = step

    def result(self, work: Plan) -> Outcome:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is gone")
        return super().result(work)


class Recording(Engine):
    """Keeps the prompts that it is asked."""

    prompts: list[list[int]]

    def submit(self, message: Submit) -> Delta | None:
        self.prompts.append(message.tokens)
        return super().submit(message)


def engine(executor: Any = None, *, depth: int = 1, max_num_seqs: int = 8, num_pages: int = 400) -> Recording:
    group = kv.group()
    cache = KVCache([group], [num_pages])
    slots = Slots(max_num_seqs, LONGEST)
    scheduler = Scheduler(slots, [KVStake(cache, slots)], max_num_batched_tokens=64)
    intake = Intake(longest=LONGEST, vocab_size=VOCAB_SIZE, seed=0)
    flush = {"flush_cache": lambda: {"freed_pages": cache.flush()}}
    made = Recording(scheduler, executor or NullExecutor(TOKEN), intake, depth=depth, pages=cache.pages, commands=flush)
    made.prompts = []
    return made


def opened(made: Engine, max_model_len: int = LONGEST) -> Opened:
    facts = make_facts(max_model_len=max_model_len, vocab_size=VOCAB_SIZE)
    return Opened(made, facts, "m", 2.5)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_everything_is_counted(depth: int) -> None:
    made = engine(depth=depth)
    workload = decode(5, 30, 12).make()
    done = offline.run(made, workload)
    assert made.prompts == [session[0].tokens for session in workload.sessions]
    assert (done.num_requests, done.num_prompt, done.num_output, done.complete) == (5, 150, 60, True)
    assert len(done.first_tokens) == 5
    assert sum(step.num_yielded for step in done.steps) == 60
    assert sum(step.num_fed for step in done.steps) == 150
    assert len(done.steps) == done.counters["steps"]
    # 150 prompt tokens take three steps of 64; in the last ones only decoding is left.
    assert [step.num_fed == 0 for step in done.steps] == sorted(step.num_fed == 0 for step in done.steps)
    assert 0 < sum(step.seconds for step in done.steps) <= done.seconds
    figures = done.figures()
    assert figures["output_tok_s"] == pytest.approx(60 / done.seconds)
    assert figures["total_tok_s"] == pytest.approx(210 / done.seconds)
    assert figures["cached_tokens"] == figures["preemptions"] == 0


def test_a_turn_s_prompt_is_the_whole_history() -> None:
    made = engine()
    workload = Workload("w", [[Turn([1, 2, 3], 2), Turn([4], 3), Turn([5, 6], 1)], [Turn([9, 8], 2)]], 0.0)
    done = offline.run(made, workload)
    history = [1, 2, 3, TOKEN, TOKEN, 4, TOKEN, TOKEN, TOKEN, 5, 6]
    assert sorted(made.prompts) == sorted([[1, 2, 3], [9, 8], history[:6], history])
    assert (done.num_requests, done.num_prompt, done.num_output) == (4, 3 + 2 + 6 + 11, 8)
    assert workload.sessions[0][0].tokens == [1, 2, 3]


def test_an_agent_finds_its_history_in_the_cache() -> None:
    done = offline.run(engine(), NAMED["agent"][0].make(0.0005))
    assert done.counters["cached_tokens"] > done.num_prompt / 2


def test_the_latency_is_that_of_steps_with_the_whole_batch() -> None:
    done = offline.run(engine(max_num_seqs=4), decode(4, 8, 10).make())
    assert done.figures(4)["step_ms_p50"] is not None
    assert done.figures(4)["ttft_ms_max"] == pytest.approx(1e3 * max(done.first_tokens))
    assert done.figures(5)["step_ms_p50"] is None
    assert done.figures(5)["decode_tok_s"] is None


def test_a_workload_can_be_cut_off() -> None:
    made = engine()
    done = offline.run(made, decode(8, 100, 300).make(), max_seconds=0)
    assert not done.complete
    assert done.num_output < 2400
    assert made.idle
    assert made.audit() == 0


def test_a_request_that_is_refused_fails_the_workload() -> None:
    with pytest.raises(WorkloadFailed, match="vocabulary"):
        offline.run(engine(), Workload("w", [[Turn([VOCAB_SIZE], 1)]], 0.0))


def test_rows_of_workloads() -> None:
    target = Offline(opened(engine()), scale=0.003, repeat=3, load={"scale": 0.003})
    rows = list(measure(target, [*NAMED["uniform"], decode(1)]))
    assert [(row.kind, row.name, row.load) for row in rows] == [
        ("throughput", "W1 uniform", {"scale": 0.003}),
        ("latency", "W5 decode", {"batch": 1, "scale": 0.003}),
    ]
    for row in rows:
        assert row.error is None
        assert len(row.runs) == 3
        name = "output_tok_s"
        assert row.figures[name] == sorted(run[name] or 0 for run in row.runs)[1]
    # The second run would find the first one's prompts, were the cache not emptied.
    assert [run["cached_tokens"] for run in rows[0].runs] == [rows[0].figures["cached_tokens"]] * 3


def test_a_batch_that_never_runs_at_once_is_noted() -> None:
    (row,) = measure(Offline(opened(engine(max_num_seqs=4))), [decode(8, 8, 8)])
    assert row.figures["step_ms_p50"] is None
    assert "--max-num-seqs" in row.notes[0]


def test_what_does_not_fit_is_said_and_the_rest_goes_on() -> None:
    target = Offline(opened(engine(), max_model_len=60), scale=0.0005)
    long, good = measure(target, [*NAMED["prefill"], decode(1)])
    assert long.error is not None
    assert "--max-model-len" in long.error
    assert "--scale" in long.error
    assert good.error is None


def test_a_failure_inside_ends_the_measurements() -> None:
    broken = opened(engine(Failing(20)))
    first, second = measure(Offline(broken, scale=0.01), [*NAMED["uniform"], *NAMED["general"]])
    assert broken.broken
    assert first.error is not None
    assert "the device is gone" in first.error
    assert second.error == "not run: the engine had failed"


def test_shapes() -> None:
    for folder in (Path(offline.__file__).parent / "shapes").iterdir():
        name = folder.name
        facts = json.loads((folder / "config.json").read_text())
        facts.pop("quantization_config", None)
        assert declare(facts).vocab_size > 30_000
        options = offline.shape_options(name)
        assert (Path(options["model"]) / "config.json").is_file()
        assert options["load_format"] == "dummy"
    assert offline.shape_options("") == {}
    assert offline.shape_options("smollm2-135m") == {}


def test_a_directory_wins_over_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama-8b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert offline.shape_options("llama-8b") == {}


def test_a_real_engine(tiny_model: Path) -> None:
    ready = offline.open_engine({"model": str(tiny_model), "device": "cpu", "threads": 1}, longest=100)
    assert ready.facts.max_model_len == 100 + offline.SPARE_LEN
    assert (ready.name, ready.row().figures["ready_s"]) == (tiny_model.name, ready.seconds)
    rows = list(measure(Offline(ready, scale=0.0005), [*NAMED["agent"], decode(1)]))
    ready.engine.executor.shutdown()
    assert [row.error for row in rows] == [None, None]
    served = NAMED["agent"][0].make(0.0005).sessions
    assert rows[0].figures["output_tokens"] == sum(turn.output_len for turns in served for turn in turns)
    assert (rows[0].figures["cached_tokens"] or 0) > 0


def test_a_model_shorter_than_the_workloads_keeps_its_length(tiny_model: Path) -> None:
    ready = offline.open_engine({"model": str(tiny_model), "device": "cpu", "kv_cache_memory": "8M"}, longest=100_000)
    assert ready.facts.max_model_len <= 4096
    ready.engine.executor.shutdown()
