"""Sends traffic to a server and measures what comes back: at a rate (open loop), or so many at once (closed loop)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, process_time
from typing import Any, Literal

import msgspec
import numpy as np

from sapwood.bench.http import Client, Event, HttpFailed
from sapwood.bench.report import Row
from sapwood.bench.statistics import Figures, Stream, serving_figures
from sapwood.bench.target import measure as measure_target
from sapwood.bench.traffic import Prompt, Session, Traffic, arrivals, join

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


@dataclass(frozen=True)
class Serving:
    """The target: a server that traffic is sent to."""

    server: Server
    traffic: Traffic
    slo: Mapping[str, float]
    repeat: int
    runner: asyncio.Runner

    def row(self, load: Load) -> Row:
        return Row(kind="serve", name=self.traffic.kind, model=self.server.model, load={load.name: load.level})

    def runs(self, load: Load, row: Row) -> Iterator[Figures]:
        failed = 0.0
        for again in range(self.repeat):
            wall, cpu = perf_counter(), process_time()
            streams, messages = self.send(replace(load, seed=load.seed + again))
            wall, cpu = perf_counter() - wall, process_time() - cpu
            figures = serving_figures(streams, self.slo) | {"client_cpu": cpu / wall}
            if load.loop == "open":
                figures["late_ms_p99"] = 1e3 * float(np.quantile([s.late for s in streams], 0.99)) if streams else None
            row.errors = dict(Counter(row.errors) + Counter(s.error for s in streams if s.error is not None))
            failed += figures["failed"] or 0
            notes = [f"{kind}: {message}" for kind, message in messages.items()] + warnings(figures)
            row.notes += [note for note in notes if note.partition(":")[0] not in " ".join(row.notes)]
            yield figures
        row.figures["failed"] = failed  # of all runs, not of the median one

    def send(self, load: Load) -> tuple[list[Stream], dict[str, str]]:
        return self.runner.run(send(self.server, self.traffic, load))


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
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        target = Serving(server, traffic, slo, repeat, runner)
        if num_warm:
            target.send(Load("closed", min(num_warm, 8), num_warm, seed=loads[0].seed + 1_000_003))
        yield from measure_target(target, (replace(x, seed=x.seed + i * repeat) for i, x in enumerate(loads)))


def warnings(figures: Figures) -> list[str]:
    """What says that the client is the limit."""
    if (figures.get("client_cpu") or 0) > BUSY:
        return ["the client was busy all the time: figures may be the client's, not the server's"]
    if (figures.get("late_ms_p99") or 0) > LATE_MS:
        return ["requests were sent late: the client could not keep the rate"]
    return []


async def send(server: Server, traffic: Traffic, load: Load) -> tuple[list[Stream], dict[str, str]]:
    """Send it all; every request as a Stream, and for each kind of error what the first of them said."""
    sessions = traffic.sessions(load.num_sessions, seed=load.seed)
    sender = _Sender(server, traffic, load)
    try:
        await (sender.open_loop if load.loop == "open" else sender.closed_loop)(sessions)
    finally:
        await sender.client.close()
    return sender.streams, sender.messages


class _Sender:
    """Sends sessions, turn by turn, and keeps what is measured of them."""

    def __init__(self, server: Server, traffic: Traffic, load: Load) -> None:
        self.client = Client(server.url, api_key=server.api_key)
        self.streams: list[Stream] = []
        self.messages: dict[str, str] = {}
        self._server, self._traffic, self._load = server, traffic, load
        self._began = perf_counter()
        self._until = self._began + load.max_seconds
        self._rng = np.random.default_rng(load.seed)
        self._fields: dict[str, Any] = {"model": server.model, "stream": True, "temperature": server.temperature}
        self._fields |= {"stream_options": {"include_usage": True}}
        self._fields |= {"ignore_eos": True} if server.ignore_eos else {}

    async def open_loop(self, sessions: Sequence[Session]) -> None:
        load = self._load
        times = arrivals(len(sessions), load.level, burstiness=load.burstiness, seed=load.seed)
        async with asyncio.TaskGroup() as group:
            for session, time in zip(sessions, times, strict=True):
                if time > load.max_seconds:
                    break
                if (early := self._began + time - perf_counter()) > 0:
                    await asyncio.sleep(early)
                group.create_task(self._session(session, due=self._began + time))

    async def closed_loop(self, sessions: Sequence[Session]) -> None:
        waiting = iter(sessions)

        async def work() -> None:
            while perf_counter() < self._until and (session := next(waiting, None)) is not None:
                await self._session(session)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(int(self._load.level), len(sessions))):
                group.create_task(work())

    async def _session(self, turns: Session, *, due: float | None = None) -> None:
        """Send a session's turns, each when the one before has ended; a turn that fails ends it."""
        history: Prompt = "" if self._traffic.as_text else []
        for index, turn in enumerate(turns, 1):
            if index > 1 and perf_counter() > self._until:
                return
            history = join(history, turn.prompt)
            fields = {"prompt": history, "max_tokens": turn.output_len, **self._fields}
            if index < len(turns) and not self._traffic.as_text:
                fields["return_token_ids"] = True  # servers that do not know it ignore it
            body = msgspec.json.encode({**fields, **self._server.extra})
            stream = Stream(perf_counter())
            stream.late = stream.sent - due if due is not None and index == 1 else 0.0
            self.streams.append(stream)
            await self._request(body, stream)
            if stream.error is not None or index == len(turns):
                return
            if isinstance(history, str):
                history += stream.text
            else:  # ids that the server does not tell are stood in for by as many random ones
                random = self._rng.integers(0, self._traffic.vocab_size, 0 if stream.ids else stream.num_output)
                history = history + (stream.ids or random.tolist())

    async def _request(self, body: bytes, stream: Stream) -> None:
        """Send one request and measure it."""

        def on_event(now: float, event: Event) -> None:
            for choice in event.choices:
                if choice.text or choice.token_ids:
                    stream.times.append(now)
                    stream.text += choice.text or ""
                    stream.ids.extend(choice.token_ids or ())
            if (usage := event.usage) is not None:
                stream.num_prompt, stream.num_output = usage.prompt_tokens, usage.completion_tokens or 0
                stream.num_cached = usage.prompt_tokens_details.cached_tokens or 0 if usage.prompt_tokens_details else 0

        try:
            async with asyncio.timeout(self._server.timeout):
                await self.client.stream(body, on_event)
            if not stream.times:
                raise HttpFailed("no tokens", "the answer was empty")
        except (HttpFailed, TimeoutError) as error:
            timeout = HttpFailed("timeout", f"no answer within {self._server.timeout:g} s")
            failed = error if isinstance(error, HttpFailed) else timeout
            stream.error = failed.kind
            self.messages.setdefault(failed.kind, str(failed))
        stream.ended = perf_counter()
        stream.num_output = stream.num_output or len(stream.times)


def allow_many_connections() -> None:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    return factory
