"""Workloads served by an engine in this process: only serving is timed, after a warm-up, from an empty prefix cache."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from sapwood.arch.families import declare
from sapwood.base.errors import SapwoodError, UserError
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Delta, Facts, Submit
from sapwood.bench import workloads
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, Step, decode_seconds, median_of, spread
from sapwood.bench.workloads import Turn, Unit, Workload
from sapwood.config.flags import flag_of, from_options, replace
from sapwood.config.shape import shape_of
from sapwood.engine.loop import Engine
from sapwood.hub.files import find

WARM_UP_SCALE = 0.02
SPARE_LEN = 64
"""Positions that an engine made for some workloads has beyond the longest of them."""


class WorkloadFailed(SapwoodError):
    """A request of a workload ended with an error; what the engine does afterwards is not worth measuring."""


# -- an engine ------------------------------------------------------------------------------------------------------------


def shapes() -> list[str]:
    """Names of the model shapes that come with the package: config.json alone, for random weights."""
    folder = resources.files("sapwood.bench") / "shapes"
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def shape_options(model: str) -> dict[str, Any]:
    """Options that make a model of a shape's name; none if it is no shape, or a path of that name is there."""
    if model not in shapes() or Path(model).exists():
        return {}
    return {"model": str(resources.files("sapwood.bench") / "shapes" / model), "load_format": "dummy"}


@dataclass
class Opened:
    """An engine that is ready. `seconds` from nothing to that, imports included. `broken` once it has failed."""

    engine: Engine
    facts: Facts
    name: str
    seconds: float
    broken: bool = False

    def row(self) -> Row:
        figures: Figures = {"ready_s": self.seconds}
        return Row(kind="start", name="start", model=self.name, figures=figures | {**self.facts.seconds_to_ready})


def open_engine(options: Mapping[str, Any], *, longest: int) -> Opened:
    """Launch an engine for sequences of `longest` tokens, unless the options say how long they may be.

    `model` may be the name of a shape. Raises UserError for what the user can mend.
    """
    began = perf_counter()
    from sapwood.engine.launch import launch  # imports torch

    config = from_options({**options, **shape_options(str(options.get("model", "")))})
    weights = config.model.load_format != "dummy"
    files = find(config.model.model, revision=config.model.revision, weights=weights)
    if config.model.max_model_len is None:
        most = shape_of(declare(files.config), name=files.name).max_positions
        config = replace(config, "model", max_model_len=min(longest + SPARE_LEN, most))
    engine, facts, _ = launch(config, files)
    name = config.model.served_model_name or Path(config.model.model).name
    return Opened(engine, facts, name, perf_counter() - began)


def warm_up(engine: Engine, facts: Facts, some: Sequence[Workload]) -> None:
    """Run what compiles or allocates on first use: long and wide steps, and small versions of what is to come."""
    if facts.device == "cpu":
        some = [workloads.decode(2, 16, 4)]  # nothing is compiled there
    else:
        some = [workloads.decode(8, 600, 8), workloads.decode(256, 40, 8), *some]
    for workload in some:
        if workload.longest <= facts.max_model_len:
            run(engine, workload.within(facts.vocab_size))
    while engine.tidy():  # as a server does while nobody asks
        pass
    engine.control("flush_cache")


# -- one workload ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What happened while a workload was served. Times in seconds."""

    seconds: float
    steps: list[Step]
    first_tokens: list[float]
    """From each request's submission to its first token."""
    num_prompt: int
    num_output: int
    num_requests: int
    complete: bool
    counters: Mapping[str, int] = field(default_factory=dict)
    host_seconds: float = 0.0

    @property
    def host_us(self) -> float | None:
        return 1e6 * self.host_seconds / self.counters["steps"] if self.counters["steps"] else None

    def throughput(self) -> Figures:
        """Figures of a whole workload. The decode time is the median of steps in which every row only decodes."""
        decoding = decode_seconds(self.steps)
        return {
            "seconds": self.seconds,
            "requests": self.num_requests,
            "prompt_tokens": self.num_prompt,
            "output_tokens": self.num_output,
            "output_tok_s": self.num_output / self.seconds,
            "prompt_tok_s": self.num_prompt / self.seconds,
            "total_tok_s": (self.num_prompt + self.num_output) / self.seconds,
            "decode_ms": spread("decode_ms", decoding)["decode_ms_p50"],
            "steps": self.counters["steps"],
            "host_us": self.host_us,
            "cached_tokens": self.counters["cached_tokens"],
            "preemptions": self.counters["preemptions"],
            **spread("ttft_ms", self.first_tokens),
        }

    def latency(self, batch: int) -> Figures:
        """Figures of steps in which all of a batch decode."""
        decoding = decode_seconds(self.steps, batch=batch)
        return {
            "seconds": self.seconds,
            **spread("step_ms", decoding),
            "decode_tok_s": batch / fmean(decoding) if decoding else None,
            "output_tok_s": self.num_output / self.seconds,
            **spread("ttft_ms", self.first_tokens),
            "ttft_ms_max": 1e3 * max(self.first_tokens) if self.first_tokens else None,
            "steps": self.counters["steps"],
            "host_us": self.host_us,
            "preemptions": self.counters["preemptions"],
        }


class _Session:
    """A session between its turns."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = deque(turns)
        self.history: list[int] = []

    @property
    def over(self) -> bool:
        return not self._turns

    def next(self) -> tuple[list[int], int]:
        """The next turn's whole prompt, and its output length."""
        turn = self._turns.popleft()
        self.history += turn.tokens
        return self.history.copy(), turn.output_len


class _Service:
    """Serves one workload, noting what happens."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self.engine = engine
        self.temperature, self.grammar = workload.temperature, workload.grammar
        self.num_prompt = self.num_output = 0
        self.first_tokens: list[float] = []
        self.steps: list[Step] = []
        self.num_requests = 0
        self._sent: dict[int, float] = {}
        self._going_on: dict[int, _Session] = {}  # requests whose output is part of a later prompt
        self._fed: deque[int] = deque()  # prompt tokens of the steps in flight
        self._sessions = [_Session(turns) for turns in workload.sessions]

    def run(self, max_seconds: float) -> bool:
        """Serve until all is done, or time is up; whether all was done."""
        engine = self.engine
        began = last = perf_counter()
        for session in self._sessions:
            self._submit(session)
        while not engine.idle:
            steps, fed = engine.counters["steps"], engine.counters["prompt_tokens"]
            news = engine.step()
            now = perf_counter()
            if engine.counters["steps"] > steps:
                self._fed.append(engine.counters["prompt_tokens"] - fed)
            for deltas in news:
                self._take(deltas.ids, deltas.tokens, deltas.deltas, now)
                num_yielded = len(deltas.ids) + sum(len(delta.tokens) for delta in deltas.deltas)
                self.num_output += num_yielded
                num_fed = self._fed.popleft() if self._fed else 0
                self.steps.append(Step((now - last) / len(news), num_yielded, num_fed))
            if news:
                last = now
            if now - began > max_seconds:
                self._give_up()
                return False
        return True

    def _give_up(self) -> None:
        self.engine.abort(Abort(list(self._sent)))
        while not self.engine.idle:
            self.engine.step()

    def _submit(self, session: _Session) -> None:
        prompt, output_len = session.next()
        id = self.num_requests
        self.num_requests += 1
        self.num_prompt += len(prompt)
        self._sent[id] = perf_counter()
        if not session.over:
            self._going_on[id] = session
        params = SamplingParams(
            max_tokens=output_len, temperature=self.temperature, ignore_eos=True, seed=id, grammar=self.grammar
        )
        refused = self.engine.submit(Submit(id, prompt, params))
        if refused is not None:
            raise WorkloadFailed(refused.error or "a request was refused")

    def _take(self, ids: Sequence[int], tokens: Sequence[int], deltas: Sequence[Delta], now: float) -> None:
        if self._going_on:
            for id, token in zip(ids, tokens, strict=True):
                if (session := self._going_on.get(id)) is not None:
                    session.history.append(token)
        for delta in deltas:
            if delta.finish == "error":
                raise WorkloadFailed(delta.error or "a request failed")
            if delta.cached_tokens >= 0:
                self.first_tokens.append(now - self._sent[delta.id])
            session = self._going_on.get(delta.id)
            if session is not None:
                session.history.extend(delta.tokens)
            if delta.finish is not None:
                del self._sent[delta.id]
                if self._going_on.pop(delta.id, None) is not None:
                    assert session is not None
                    self._submit(session)


def run(engine: Engine, workload: Workload, *, max_seconds: float = math.inf) -> Run:
    """Serve a workload, its requests all submitted at once, for at most `max_seconds`. Raises WorkloadFailed.

    Prompts beyond the cache's contents are computed: flush it first for a cold start.
    """
    gc.collect()  # what earlier work has left is not this one's pause
    before = engine.stats()
    service = _Service(engine, workload)
    began = perf_counter()
    complete = service.run(max_seconds)
    seconds = perf_counter() - began
    after = engine.stats()
    counters = {name: value - before.counters.get(name, 0) for name, value in after.counters.items()}
    return Run(
        seconds=seconds,
        steps=service.steps,
        first_tokens=service.first_tokens,
        num_prompt=service.num_prompt,
        num_output=service.num_output,
        num_requests=service.num_requests,
        complete=complete,
        counters=counters,
        host_seconds=after.seconds["host_seconds"] - before.seconds["host_seconds"],
    )


# -- rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How workloads are measured. `repeat` runs each from an empty cache; figures are medians."""

    scale: float = 1.0
    repeat: int = 1
    max_seconds: float = math.inf


def throughput(opened: Opened, units: Sequence[Unit], settings: Settings) -> Iterator[Row]:
    """A row per workload; one that fails is a row with an error, and if the engine failed so are all after it."""
    load: dict[str, float | int | str] = {} if settings.scale == 1 else {"scale": settings.scale}
    for unit in units:
        workload, small = unit.make(settings.scale), unit.make(WARM_UP_SCALE * settings.scale)
        if unit.name == "decode":
            yield _decode_row(opened, workload, load, small, settings)
        else:
            row = Row(kind="throughput", name=workload.name, model=opened.name, load=load)
            _measure(opened, workload, small, settings, row, Run.throughput)
            yield row


def latency(opened: Opened, some: Sequence[Workload], settings: Settings) -> Iterator[Row]:
    """A row per batch, each one turn a session with the same lengths."""
    for workload in some:
        (turn,) = workload.sessions[0]
        load: dict[str, float | int | str] = {"input": len(turn.tokens), "output": turn.output_len}
        small = workloads.decode(len(workload.sessions), min(len(turn.tokens), 32), min(turn.output_len, 4))
        yield _decode_row(opened, workload, load, small, settings)


def _decode_row(
    opened: Opened, workload: Workload, load: dict[str, float | int | str], small: Workload, settings: Settings
) -> Row:
    batch = len(workload.sessions)
    row = Row(kind="latency", name="W5 decode", model=opened.name, load={"batch": batch, **load})
    _measure(opened, workload, small, settings, row, lambda done: done.latency(batch))
    if row.error is None and row.figures["step_ms_p50"] is None:
        row.notes.append(
            f"the {batch} never decoded all at once: see {flag_of('max_num_seqs')} and the KV cache's size"
        )
    return row


def _measure(
    opened: Opened,
    workload: Workload,
    small: Workload,
    settings: Settings,
    row: Row,
    figures: Callable[[Run], Figures],
) -> None:
    """Serve it `repeat` times and fill in the row."""
    if opened.broken:
        row.error = "not run: the engine had failed"
        return
    try:
        check_fits(workload, opened.facts)
        warm_up(opened.engine, opened.facts, [small])
        for _ in range(settings.repeat):
            opened.engine.control("flush_cache")
            done = run(opened.engine, workload.within(opened.facts.vocab_size), max_seconds=settings.max_seconds)
            row.runs.append(figures(done))
            if not done.complete:
                row.notes.append(f"cut off after {settings.max_seconds:g} s")
                break
    except UserError as error:
        row.error = str(error)
    except Exception as error:  # to be reported beside what the others found
        row.error = f"{type(error).__name__}: {error}"
        opened.broken = True
    row.figures = median_of(row.runs)


def check_fits(workload: Workload, facts: Facts) -> None:
    """Raises UserError if the engine takes no sequences that long."""
    if workload.longest > facts.max_model_len:
        raise UserError(
            f"{workload.name} has sequences of {workload.longest} tokens, and the engine takes {facts.max_model_len}: "
            f"raise {flag_of('max_model_len')} or {flag_of('kv_cache_memory')}, or make it smaller with --scale."
        )
