"""Workloads served by an engine in this process: only serving is timed, after a warm-up, from an empty prefix cache."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from sapwood.base.errors import SapwoodError, UserError
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Deltas, Facts, Submit
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, Step, decode_seconds, spread
from sapwood.bench.traffic import Turn
from sapwood.bench.workloads import Workload, WorkloadSpec, decode
from sapwood.catalogue import joined
from sapwood.config.devices import rules_of
from sapwood.config.flags import flag_of, from_options, replace
from sapwood.config.shape import shape_of
from sapwood.engine.loop import Engine
from sapwood.hub.files import find_configured

WARM_UP_SCALE = 0.02
SPARE_LEN = 64
"""Positions that an engine made for some workloads has beyond the longest of them."""


class WorkloadFailed(SapwoodError):
    """A request of a workload ended with an error; what the engine does afterwards is not worth measuring."""


def shape_options(model: str) -> dict[str, Any]:
    """Options that make a model of a shape's name: one that comes with the package as a config.json, for random weights.

    None if it is no shape, or a path of that name is there.
    """
    shape = resources.files("sapwood.bench") / "shapes" / model
    if not model or Path(model).exists() or not (shape / "config.json").is_file():
        return {}
    return {"model": str(shape), "load_format": "dummy"}


@dataclass
class Opened:
    """An engine that is ready. `seconds` from nothing to that, imports included. `broken` once it has failed."""

    engine: Engine
    facts: Facts
    name: str
    seconds: float
    broken: bool = False

    def row(self) -> Row:
        figures: Figures = {"ready_s": self.seconds, **self.facts.seconds_to_ready}
        return Row(kind="start", name="start", model=self.name, figures=figures)


def open_engine(options: Mapping[str, Any], *, longest: int) -> Opened:
    """Launch an engine for sequences of `longest` tokens, unless the options say how long they may be.

    `model` may be the name of a shape. Raises UserError for what the user can mend.
    """
    began = perf_counter()
    from sapwood.engine.declared import declared
    from sapwood.engine.launch import launch  # imports torch

    config, catalogue = from_options({**options, **shape_options(str(options.get("model", "")))}), joined()
    families = catalogue.families
    files = find_configured(config.model, families=families)
    if config.model.max_model_len is None:
        decoder = declared(config, files, catalogue)
        most = shape_of(decoder, name=files.name).max_positions
        config = replace(config, "model", max_model_len=min(longest + SPARE_LEN, most))
    engine, facts, _ = launch(config, files, catalogue=catalogue)
    (name, *_) = config.model.served_model_name or (Path(config.model.model).name,)
    return Opened(engine, facts, name, perf_counter() - began)


def warm_up(engine: Engine, facts: Facts, small: Workload) -> None:
    """Run what compiles or allocates on first use: long and wide steps, and a small version of what is to come."""
    if rules_of(facts.device).compiles:
        some = [decode(8, 600, 8).make(), decode(256, 40, 8).make(), small]
    else:
        some = [decode(2, 16, 4).make()]
    for workload in some:
        if workload.longest <= facts.max_model_len:
            run(engine, workload.within(facts.vocab_size))
    while engine.tidy():  # as a server does while nobody asks
        pass
    engine.control("flush_cache")


class Run:
    """A workload being served, and what happened. Times in seconds; `first_tokens` from each request's submission."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self.seconds = self.host_seconds = 0.0
        self.steps: list[Step] = []
        self.first_tokens: list[float] = []
        self.num_prompt = self.num_output = self.num_requests = 0
        self.complete = True
        self.counters: Mapping[str, int] = {}
        self._engine, self._workload = engine, workload
        self._sent: dict[int, float] = {}
        self._going_on: dict[int, tuple[list[int], deque[Turn]]] = {}  # history, and turns that its output is part of
        self._fed: deque[int] = deque()  # prompt tokens of the steps in flight

    def serve(self, max_seconds: float) -> None:
        """Serve until all is done, or time is up."""
        engine = self._engine
        before, began = engine.stats(), perf_counter()
        last = began
        for turns in self._workload.sessions:
            self._submit([], deque(turns))
        while not engine.idle:
            steps, fed = engine.counters["steps"], engine.counters["prompt_tokens"]
            news = engine.step()
            now = perf_counter()
            if engine.counters["steps"] > steps:
                self._fed.append(engine.counters["prompt_tokens"] - fed)
            for deltas in news:
                num_yielded = self._take(deltas, now)
                self.num_output += num_yielded
                num_fed = self._fed.popleft() if self._fed else 0
                self.steps.append(Step((now - last) / len(news), num_yielded, num_fed))
            if news:
                last = now
            if self.complete and now - began > max_seconds:
                self.complete = False
                engine.abort(Abort(list(self._sent)))
                self._going_on.clear()
        self.seconds, after = perf_counter() - began, engine.stats()
        self.counters = {name: value - before.counters.get(name, 0) for name, value in after.counters.items()}
        self.host_seconds = after.seconds["host_seconds"] - before.seconds["host_seconds"]

    def _submit(self, history: list[int], turns: deque[Turn]) -> None:
        """The next turn of a session, its prompt the whole history."""
        turn, id = turns.popleft(), self.num_requests
        prompt = history + turn.tokens
        self.num_requests += 1
        self.num_prompt += len(prompt)
        self._sent[id] = perf_counter()
        if turns:
            self._going_on[id] = (prompt.copy(), turns)
        temperature, grammar = self._workload.temperature, self._workload.grammar
        params = SamplingParams(
            max_tokens=turn.output_len, temperature=temperature, ignore_eos=True, seed=id, grammar=grammar
        )
        refused = self._engine.submit(Submit(id, prompt, params))
        if refused is not None:
            raise WorkloadFailed(refused.error or "a request was refused")

    def _take(self, news: Deltas, now: float) -> int:
        """Note a step's news; how many tokens it brought."""
        if self._going_on:
            for id, token in zip(news.ids, news.tokens, strict=True):
                if id in self._going_on:
                    self._going_on[id][0].append(token)
        for delta in news.deltas:
            if delta.finish == "error":
                raise WorkloadFailed(delta.error or "a request failed")
            if delta.cached_tokens >= 0:
                self.first_tokens.append(now - self._sent[delta.id])
            if delta.id in self._going_on:
                self._going_on[delta.id][0].extend(delta.tokens)
            if delta.finish is not None:
                del self._sent[delta.id]
                if session := self._going_on.pop(delta.id, None):
                    self._submit(*session)
        return len(news.ids) + sum(len(delta.tokens) for delta in news.deltas)

    def _drafts(self) -> Figures:
        """How many drafts were fed, and which share of them was right, if any were."""
        fed, right = (
            sum(count for name, count in self.counters.items() if name.startswith(prefix))
            for prefix in ("drafts_", "accepted_drafts_")
        )
        return {"drafts": fed, "acceptance": right / fed} if fed else {}

    def figures(self, batch: int | None = None) -> Figures:
        """The decode time is the median of steps in which every row only decodes; of `batch` rows, all is told of those."""
        decoding, steps = decode_seconds(self.steps, batch=batch), self.counters["steps"]
        found: Figures = {
            "requests": self.num_requests,
            "prompt_tokens": self.num_prompt,
            "output_tokens": self.num_output,
            "seconds": self.seconds,
            "output_tok_s": self.num_output / self.seconds,
            "prompt_tok_s": self.num_prompt / self.seconds,
            "total_tok_s": (self.num_prompt + self.num_output) / self.seconds,
            "steps": steps,
            "host_us": 1e6 * self.host_seconds / steps if steps else None,
            "cached_tokens": self.counters["cached_tokens"],
            "preemptions": self.counters["preemptions"],
            **self._drafts(),
            **spread("ttft_ms", self.first_tokens),
            "ttft_ms_max": 1e3 * max(self.first_tokens) if self.first_tokens else None,
        }
        if batch is None:
            return found | {"decode_ms": spread("decode_ms", decoding)["decode_ms_p50"]}
        return found | spread("step_ms", decoding) | {"decode_tok_s": batch / fmean(decoding) if decoding else None}


def run(engine: Engine, workload: Workload, *, max_seconds: float = math.inf) -> Run:
    """Serve a workload, its requests all submitted at once, for at most `max_seconds`. Raises WorkloadFailed.

    Prompts beyond the cache's contents are computed: flush it first for a cold start.
    """
    gc.collect()  # what earlier work has left is not this one's pause
    done = Run(engine, workload)
    done.serve(max_seconds)
    return done


@dataclass(frozen=True)
class Offline:
    """The target: specs are made at `scale`, and `repeat` runs of each begin with an empty cache.

    `load` is what rows say of it beside a batch's size. One workload that fails is a row with an error, and if the
    engine failed so are all after it.
    """

    opened: Opened
    scale: float = 1.0
    repeat: int = 1
    max_seconds: float = math.inf
    load: Mapping[str, float | int | str] = field(default_factory=dict)

    def row(self, spec: WorkloadSpec) -> Row:
        model, name = self.opened.name, spec.name
        if not spec.decodes:
            return Row(kind="throughput", name=name, model=model, load={**self.load})
        load = {"batch": spec.count, **self.load}
        return Row(kind="latency", name=name.partition(",")[0], model=model, load=load)

    def runs(self, spec: WorkloadSpec, row: Row) -> Iterator[Figures]:
        if self.opened.broken:
            row.error = "not run: the engine had failed"
            return
        try:
            yield from self._runs(spec, row)
        except UserError as error:
            row.error = str(error)
        except Exception as error:  # to be reported beside what the others found
            row.error = f"{type(error).__name__}: {error}"
            self.opened.broken = True

    def _runs(self, spec: WorkloadSpec, row: Row) -> Iterator[Figures]:
        engine, facts, workload = self.opened.engine, self.opened.facts, spec.make(self.scale)
        if workload.longest > facts.max_model_len:
            raise UserError(
                f"{spec.name} has sequences of {workload.longest} tokens, and the engine takes {facts.max_model_len}: "
                f"raise {flag_of('max_model_len')} or {flag_of('kv_cache_memory')}, or make it smaller with --scale."
            )
        warm_up(engine, facts, spec.make(WARM_UP_SCALE * self.scale))
        for _ in range(self.repeat):
            engine.control("flush_cache")
            done = run(engine, workload.within(facts.vocab_size), max_seconds=self.max_seconds)
            figures = done.figures(spec.count if spec.decodes else None)
            if figures.get("step_ms_p50", 0) is None and not row.notes:
                limit = f"see {flag_of('max_num_seqs')} and the KV cache's size"
                row.notes.append(f"the {spec.count} never decoded all at once: {limit}")
            yield figures
            if not done.complete:
                row.notes.append(f"cut off after {self.max_seconds:g} s")
                break
