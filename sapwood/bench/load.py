"""Sends traffic to a server and measures what comes back: at a rate (open loop), or so many at once (closed loop)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, Literal

import msgspec
import numpy as np

from sapwood.bench.http import Client, Event, HttpFailed
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, Stream, errors_by_kind, median_of, percentile, serving_figures
from sapwood.bench.traffic import Prompt, Traffic, Turn, arrivals, join

BUSY = 0.85
"""Share of a core above which the client, not the server, may be what is measured."""
LATE_MS = 20.0
"""Requests sent later than this after their time mean the same."""


@dataclass(frozen=True)
class Server:
    """Who is asked. `extra` are further fields of each request's body."""

    url: str
    model: str
    api_key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0


@dataclass(frozen=True)
class Load:
    """How much is sent. `level` is sessions a second of an open loop, or sessions at once of a closed one."""

    loop: Literal["open", "closed"]
    level: float
    num_sessions: int
    burstiness: float = 1.0
    max_seconds: float = math.inf
    seed: int = 0

    @property
    def name(self) -> str:
        return "rate" if self.loop == "open" else "concurrency"


def measure(
    server: Server,
    traffic: Traffic,
    loads: Sequence[Load],
    *,
    slo: Mapping[str, float],
    num_warm: int = 4,
    repeat: int = 1,
) -> Iterator[Row]:
    """A row per load, after `num_warm` sessions that are not measured. Each load has sessions of its own."""
    allow_many_connections()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        if num_warm:
            warm = Load("closed", min(num_warm, 8), num_warm, seed=loads[0].seed + 1_000_003)
            runner.run(send(server, traffic, warm))
        for index, load in enumerate(loads):
            row = Row(kind="serve", name=traffic.kind, model=server.model, load={load.name: load.level})
            for again in range(repeat):
                seed = load.seed + index * repeat + again
                streams, figures, messages = runner.run(_measured(server, traffic, load, seed))
                row.runs.append(serving_figures(streams, slo) | figures)
                for kind, count in errors_by_kind(streams).items():
                    row.errors[kind] = row.errors.get(kind, 0) + count
                row.notes += [f"{kind}: {messages[kind]}" for kind in messages if kind not in " ".join(row.notes)]
            row.figures = median_of(row.runs)
            row.figures["failed"] = sum(run["failed"] or 0 for run in row.runs)
            row.notes += warnings(row.figures)
            yield row


def warnings(figures: Figures) -> list[str]:
    """What says that the client is the limit."""
    found = []
    if (figures.get("client_cpu") or 0) > BUSY:
        found.append("the client was busy all the time: figures may be the client's, not the server's")
    elif (figures.get("late_ms_p99") or 0) > LATE_MS:
        found.append("requests were sent late: the client could not keep the rate")
    return found


async def _measured(
    server: Server, traffic: Traffic, load: Load, seed: int
) -> tuple[list[Stream], Figures, dict[str, str]]:
    wall, cpu = perf_counter(), process_time()
    streams, messages = await send(server, traffic, load, seed=seed)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    figures: Figures = {"client_cpu": cpu / wall}
    if load.loop == "open":
        figures["late_ms_p99"] = 1e3 * percentile([s.late for s in streams], 0.99) if streams else None
    return streams, figures, messages


async def send(
    server: Server, traffic: Traffic, load: Load, *, seed: int | None = None
) -> tuple[list[Stream], dict[str, str]]:
    """Send it all; every request as a Stream, and for each kind of error what the first of them said."""
    seed = load.seed if seed is None else seed
    sender = _Sender(server, traffic, seed)
    sessions = traffic.sessions(load.num_sessions, seed=seed)
    try:
        if load.loop == "open":
            await _open_loop(sender, sessions, load, seed)
        else:
            await _closed_loop(sender, sessions, load)
    finally:
        await sender.client.close()
    return sender.streams, sender.messages


async def _open_loop(sender: _Sender, sessions: Sequence[Sequence[Turn]], load: Load, seed: int) -> None:
    times = arrivals(len(sessions), load.level, burstiness=load.burstiness, seed=seed)
    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for session, time in zip(sessions, times, strict=True):
            if time > load.max_seconds:
                break
            if (early := began + time - perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(sender.session(session, due=began + time, until=began + load.max_seconds))


async def _closed_loop(sender: _Sender, sessions: Sequence[Sequence[Turn]], load: Load) -> None:
    waiting = deque(sessions)
    until = perf_counter() + load.max_seconds

    async def work() -> None:
        while waiting and perf_counter() < until:
            await sender.session(waiting.popleft(), until=until)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(int(load.level), len(sessions))):
            group.create_task(work())


class _Sender:
    """Sends sessions, turn by turn, and keeps what is measured of them."""

    def __init__(self, server: Server, traffic: Traffic, seed: int) -> None:
        self.server = server
        self.client = Client(server.url, api_key=server.api_key)
        self.streams: list[Stream] = []
        self.messages: dict[str, str] = {}
        self._rng = np.random.default_rng(seed)
        self._traffic = traffic
        self._fields = {
            "model": server.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": server.temperature,
            **({"ignore_eos": True} if server.ignore_eos else {}),
        }

    async def session(self, turns: Sequence[Turn], *, due: float | None = None, until: float = math.inf) -> None:
        """Send a session's turns, each when the one before has ended; a turn that fails ends it."""
        history: Prompt = "" if self._traffic.as_text else []
        for index, turn in enumerate(turns):
            if index and perf_counter() > until:
                return
            history = join(history, turn.prompt)
            goes_on = index + 1 < len(turns)
            answer = _Answer()
            stream = await self._request(
                history, turn.output_len, answer, whole=goes_on, due=due if not index else None
            )
            if stream.error is not None:
                return
            if goes_on:
                history = self._with_answer(history, answer, stream)

    async def _request(
        self, prompt: Prompt, output_len: int, answer: _Answer, *, whole: bool, due: float | None
    ) -> Stream:
        fields = {"prompt": prompt, "max_tokens": output_len, **self._fields}
        if whole and not self._traffic.as_text:
            fields["return_token_ids"] = True  # servers that do not know it ignore it
        body = msgspec.json.encode(fields | dict(self.server.extra))
        now = perf_counter()
        stream = Stream(now, late=now - due if due is not None else 0.0)
        self.streams.append(stream)

        def on_event(now: float, event: Event) -> None:
            if event.usage is not None:
                answer.usage = event
            for choice in event.choices:
                text = choice.text or (choice.delta.content if choice.delta else None)
                if text or choice.token_ids:
                    stream.times.append(now)
                    if whole:
                        answer.text.append(text or "")
                        answer.ids += choice.token_ids or ()

        try:
            async with asyncio.timeout(self.server.timeout):
                await self.client.stream(body, on_event)
            if not stream.times:
                raise HttpFailed("no tokens", "the answer was empty")
        except HttpFailed as failed:
            stream.error = failed.kind
            self.messages.setdefault(failed.kind, str(failed))
        except TimeoutError:
            stream.error = "timeout"
            self.messages.setdefault("timeout", f"no answer within {self.server.timeout:g} s")
        stream.ended = perf_counter()
        stream.num_output = len(stream.times)
        if answer.usage is not None and (usage := answer.usage.usage) is not None:
            stream.num_prompt = usage.prompt_tokens
            if usage.completion_tokens is not None:
                stream.num_output = usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                stream.num_cached = usage.prompt_tokens_details.cached_tokens or 0
        return stream

    def _with_answer(self, history: Prompt, answer: _Answer, stream: Stream) -> Prompt:
        """The history with the answer; ids that the server does not tell are stood in for by as many random ones."""
        if isinstance(history, str):
            return history + "".join(answer.text)
        if answer.ids:
            return history + answer.ids
        stand_in: list[int] = self._rng.integers(0, self._traffic.vocab_size, stream.num_output).tolist()
        return history + stand_in


@dataclass
class _Answer:
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    usage: Event | None = None


def allow_many_connections() -> None:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
