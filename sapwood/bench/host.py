"""What one step of steady decode costs the host: a scheduler, a KV cache and the loop, with nothing behind them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from sapwood.base.kv import KVGroup
from sapwood.base.news import Landing
from sapwood.base.plan import Outcome, Plan
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.wire import Submit
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, median_of, spread
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine
from sapwood.executor.null import NullExecutor
from sapwood.scheduler import Scheduler

VOCAB_SIZE = 32_000
WARM_STEPS = 20
STEP_TOKENS = 8192  # prompt tokens of a step while the sequences start


@dataclass(frozen=True)
class Settings:
    """`num_steps` are measured. Prompts have `prefix_len` tokens in common and about `input_len` of their own."""

    num_steps: int = 300
    input_len: int = 128
    prefix_len: int = 0
    page_size: int = 16
    depth: int = 1
    repeat: int = 1


class _Timed(Scheduler):
    """Notes how long it plans and commits."""

    def reset(self) -> None:
        self.plan_seconds: list[float] = []
        self.commit_seconds: list[float] = []

    def plan(self) -> Plan | None:
        began = perf_counter()
        plan = super().plan()
        self.plan_seconds.append(perf_counter() - began)
        return plan

    def commit(self, plan: Plan, outcome: Outcome) -> Landing:
        began = perf_counter()
        landing = super().commit(plan, outcome)
        self.commit_seconds.append(perf_counter() - began)
        return landing


def measure(batches: Sequence[int], settings: Settings) -> Iterator[Row]:
    """A row per number of running sequences; figures are medians over `repeat` runs, each in an engine of its own."""
    for batch in batches:
        runs = [_run(batch, settings) for _ in range(settings.repeat)]
        load: dict[str, float | int | str] = {"sequences": batch}
        if settings.prefix_len:
            load["prefix"] = settings.prefix_len
        yield Row(kind="host", name="host", load=load, figures=median_of(runs), runs=runs)


def _run(batch: int, settings: Settings) -> Figures:
    engine, scheduler = _engine(batch, settings)
    rng = np.random.default_rng(0)
    shared = rng.integers(1, VOCAB_SIZE, settings.prefix_len).tolist()
    # Lengths that differ, so that requests turn pages in different steps, as they do in service.
    lengths = rng.integers(settings.input_len // 2, settings.input_len + settings.input_len // 2 + 1, batch)
    for id, length in enumerate(lengths.tolist()):
        prompt = shared + rng.integers(1, VOCAB_SIZE, max(length, 1)).tolist()
        engine.submit(Submit(id, prompt, SamplingParams(temperature=0.0, ignore_eos=True, seed=id)))
    scheduler.reset()
    fed = -1
    while scheduler.num_waiting or engine.counters["prompt_tokens"] != fed:
        fed = engine.counters["prompt_tokens"]
        engine.step()
    for _ in range(WARM_STEPS):
        engine.step()
    gc.collect()
    scheduler.reset()
    seconds = []
    for _ in range(settings.num_steps):
        began = perf_counter()
        engine.step()
        seconds.append(perf_counter() - began)
    assert scheduler.num_running == batch, "the sequences were to last"
    return {
        **spread("plan_us", scheduler.plan_seconds, factor=1e6),
        **spread("commit_us", scheduler.commit_seconds, factor=1e6),
        **spread("step_us", seconds, factor=1e6),
        "steps": settings.num_steps,
    }


def _engine(batch: int, settings: Settings) -> tuple[Engine, _Timed]:
    """Room for every sequence to the end of the run, and a step's budget as on a GPU."""
    starting = 8 + 2 * batch * (settings.input_len + 1) // STEP_TOKENS  # the first decode until the last has started
    own = starting + settings.num_steps + WARM_STEPS + 2 * settings.input_len
    longest = settings.prefix_len + own
    pages = 2 + -(-settings.prefix_len // settings.page_size) + batch * (-(-own // settings.page_size) + 1)
    group = KVGroup(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=1, window=None, page_size=settings.page_size)
    slots = Slots(batch, longest)
    stakes = [KVStake(KVCache([group], [pages]), slots)]
    scheduler = _Timed(slots, stakes, max_num_batched_tokens=batch + STEP_TOKENS)
    scheduler.reset()
    intake = Intake(longest=longest, vocab_size=VOCAB_SIZE, seed=0)
    return Engine(scheduler, NullExecutor(token=1), intake, depth=settings.depth), scheduler
