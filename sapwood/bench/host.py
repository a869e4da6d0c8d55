"""What one step of steady decode costs the host: a scheduler, a KV cache and the loop, with nothing behind them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sapwood.base.kv import Heads, KVGroup
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.wire import Submit
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, spread, timing
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine
from sapwood.executor.null import NullExecutor
from sapwood.scheduler import Scheduler

VOCAB_SIZE = 32_000
WARM_STEPS = 20
STEP_TOKENS = 8192  # prompt tokens of a step while the sequences start


@dataclass(frozen=True)
class Host:
    """The target. `num_steps` are measured; prompts have `prefix_len` tokens in common and about `input_len` of their own."""

    num_steps: int = 300
    input_len: int = 128
    prefix_len: int = 0
    page_size: int = 16
    depth: int = 1
    repeat: int = 1

    def row(self, batch: int) -> Row:
        prefix = {"prefix": self.prefix_len} if self.prefix_len else {}
        return Row(kind="host", name="host", load={"sequences": batch, **prefix})

    def runs(self, batch: int, row: Row) -> Iterator[Figures]:
        """Each in an engine of its own."""
        return (self._run(batch) for _ in range(self.repeat))

    def _run(self, batch: int) -> Figures:
        engine, scheduler = self.engine(batch)
        rng = np.random.default_rng(0)
        shared = rng.integers(1, VOCAB_SIZE, self.prefix_len).tolist()
        # Lengths that differ, so that requests turn pages in different steps, as they do in service.
        lengths = rng.integers(self.input_len // 2, self.input_len + self.input_len // 2 + 1, batch)
        for id, length in enumerate(lengths.tolist()):
            prompt = shared + rng.integers(1, VOCAB_SIZE, max(length, 1)).tolist()
            engine.submit(Submit(id, prompt, SamplingParams(temperature=0.0, ignore_eos=True, seed=id)))
        fed = -1
        while scheduler.num_waiting or engine.counters["prompt_tokens"] != fed:
            fed = engine.counters["prompt_tokens"]
            engine.step()
        for _ in range(WARM_STEPS):
            engine.step()
        gc.collect()
        with timing([("plan", scheduler, "plan"), ("commit", scheduler, "commit"), ("step", engine, "step")]) as found:
            for _ in range(self.num_steps):
                engine.step()
        assert scheduler.num_running == batch, "the sequences were to last"
        figures: Figures = {"steps": self.num_steps}
        for name, seconds in found.items():
            figures |= spread(f"{name}_us", seconds, factor=1e6)
        return figures

    def engine(self, batch: int) -> tuple[Engine, Scheduler]:
        """Room for every sequence to the end of the run, and a step's budget as on a GPU."""
        starting = 8 + 2 * batch * (self.input_len + 1) // STEP_TOKENS  # the first decode until the last has started
        own = starting + self.num_steps + WARM_STEPS + 2 * self.input_len
        longest = self.prefix_len + own
        pages = 2 + -(-self.prefix_len // self.page_size) + batch * (-(-own // self.page_size) + 1)
        group = KVGroup(Heads(num_heads=1, num_kv_heads=1, head_dim=1), num_layers=1, page_size=self.page_size)
        slots = Slots(batch, longest)
        stakes = [KVStake(KVCache([group], [pages]), slots)]
        scheduler = Scheduler(slots, stakes, max_num_batched_tokens=batch + STEP_TOKENS)
        intake = Intake(longest=longest, vocab_size=VOCAB_SIZE, seed=0)
        return Engine(scheduler, NullExecutor(token=1), intake, depth=self.depth), scheduler
