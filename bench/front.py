"""How fast the HTTP front passes tokens on, whatever the engine.

Three processes: `sapwood serve`, its engine, which yields one token per stream and tick and computes nothing, and this
one, which holds the streams.

    python bench/front.py                                256 streams, a tick every 4 ms
    python bench/front.py --streams 1024 --tick-ms 16
    python bench/front.py --tick-ms 0                    as fast as the tokens arrive here (two ticks may be on their way)
    python bench/front.py --burst 1000                   so many requests more, all at once, in the middle

The token of a tick is its number, so the client knows when what it reads was sent. Latency runs
from the moment at which a tick's tokens leave the device that is none to the moment at which they are read here.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from sapwood.arch.parts import Decoder
from sapwood.base.plan import Outcome, Plan
from sapwood.bench.load import allow_many_connections, loop_factory
from sapwood.bench.spawn import serving
from sapwood.config import Config
from sapwood.executor.base import Measured
from sapwood.executor.fake import measured
from sapwood.executor.null import NullExecutor
from sapwood.hub.draft import DraftModel
from sapwood.hub.files import ModelFiles

SHAPE, VOCAB_SIZE = "llama-8b-v49k", 49_152
FLAGS = "--device cpu --overlap-depth 0 --max-num-batched-tokens 1M --drain-timeout 0"
AHEAD = 2  # ticks that may be on their way with --tick-ms 0
BURST_TOKENS = 8


class Board(NamedTuple):
    """What the engine and the client tell each other beside the server: when each word was sent, how many arrived."""

    sent: np.ndarray
    arrived: np.ndarray

    @classmethod
    def open(cls, path: str) -> Board:
        cells = np.memmap(path, np.float64, "r+" if Path(path).exists() else "w+", shape=VOCAB_SIZE + 1)
        return cls(cells[:-1], cells[-1:])


# -- the engine and the server -----------------------------------------------------------------------------------------


class Ticking(NullExecutor):
    """Yields the tokens of a step at the next tick."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self._board, self._period, self._ahead = Board.open(args.board), args.tick_ms / 1000, AHEAD * args.streams
        self._tick = self._num_sent = 0
        self._due = perf_counter()

    def start(
        self,
        config: Config,
        decoder: Decoder,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        return measured(config, decoder, "none", kv_bytes=1 << 40)

    def result(self, work: Plan) -> Outcome:
        while not self._period and self._board.arrived[0] < self._num_sent - self._ahead:
            sleep(5e-5)
        sleep(max(self._due - perf_counter(), 0))
        self._due = max(self._due + self._period, perf_counter() - 0.1)
        self.token, self._tick = self._tick % VOCAB_SIZE, self._tick + 1
        self._num_sent += work.num_heads
        self._board.sent[self.token] = perf_counter()
        return super().result(work)


def engine(args: argparse.Namespace) -> None:
    from sapwood.engine import process
    from sapwood.engine.launch import launch

    process._launcher = lambda: partial(launch, executor=Ticking(args))
    process.main()


def server(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from sapwood.cli import main as sapwood
    from sapwood.engine import spawn

    if args.plain:
        sys.modules["uvloop"] = sys.modules["httptools"] = None  # type: ignore[assignment]
    spawn.COMMAND = (sys.executable, __file__, "engine", *sys.argv[2 : -len(flags)])
    with cProfile.Profile() if args.profile else nullcontext() as profile:
        code = sapwood(["serve", *flags])
    if profile is not None:
        profile.dump_stats(args.profile)
    raise SystemExit(code)


# -- the client --------------------------------------------------------------------------------------------------------


class Api(NamedTuple):
    """A route that streams: its path, what a body has besides the prompt, and the lines and spaces of a frame without tokens.

    `tellings`: how often a stream tells its text in all.
    """

    path: str
    body: Callable[[str, int], dict[str, Any]]
    lines: int
    spaces: int
    tellings: int = 1


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


_COMMON = {"stream": True, "ignore_eos": True, "temperature": 0}
APIS = {
    "completions": Api(
        "/v1/completions", lambda prompt, most: {"prompt": prompt, "max_tokens": most, **_COMMON}, lines=2, spaces=1
    ),
    "chat": Api(
        "/v1/chat/completions",
        lambda prompt, most: {"messages": _messages(prompt), "max_tokens": most, **_COMMON},
        lines=2,
        spaces=1,
    ),
    "responses": Api(
        "/v1/responses",
        lambda prompt, most: {"input": prompt, "max_output_tokens": most, "store": False, **_COMMON},
        lines=3,
        spaces=2,
        tellings=5,
    ),
    "messages": Api(
        "/v1/messages",
        lambda prompt, most: {"messages": _messages(prompt), "max_tokens": most, **_COMMON},
        lines=3,
        spaces=2,
    ),
    "ollama": Api(
        "/api/chat",
        lambda prompt, most: {
            "messages": _messages(prompt),
            "options": {"num_predict": most, "temperature": 0, "ignore_eos": True},
        },
        lines=1,
        spaces=0,
    ),
}


class Reader(asyncio.Protocol):
    """One stream: asks when it is told to, then counts tokens and frames as they come, which is all that it has time for.

    Every token's text holds one space and no line feed, so bytes are counted; chunks of HTTP have a carriage return with
    each of their line feeds.
    """

    def __init__(self, request: bytes, api: Api, board: Board) -> None:
        self._request, self._api, self._board = request, api, board
        self._spaces = self._lines = 0
        self.asked, self.first_tick = 0.0, -1
        self.chunks: list[tuple[float, int]] = []  # when, and how many tokens by then
        self.done = asyncio.get_running_loop().create_future()

    @property
    def frames(self) -> int:
        return self._lines // self._api.lines

    @property
    def tokens(self) -> int:
        return self._spaces - self.frames * self._api.spaces

    def ask(self) -> None:
        self.asked = perf_counter()
        self.transport.write(self._request)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self.first_tick < 0:
            data = data.partition(b"\r\n\r\n")[2] if data.startswith(b"HTTP/1.1 200 ") else data
            if found := re.search(rb'"w(\d+) ', data):
                self.first_tick = int(found[1])
        before, over = self.tokens, data.endswith(b"0\r\n\r\n")
        self._spaces += data.count(b" ")
        self._lines += data.count(b"\n") - data.count(b"\r")
        self._board.arrived[0] += self.tokens - before
        if self.tokens > before:
            self.chunks.append((now, self.tokens))
        if over:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))


async def open_streams(url: str, number: int, args: argparse.Namespace, board: Board, max_tokens: int) -> list[Reader]:
    api = APIS[args.api]
    body = json.dumps(api.body("word " * args.prompt_words, max_tokens)).encode()
    head = (
        f"POST {api.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    make, loop = partial(Reader, head.encode() + body, api, board), asyncio.get_running_loop()
    host, port = url.removeprefix("http://").split(":")
    return [(await loop.create_connection(make, host, int(port)))[1] for _ in range(number)]


async def measure(url: str, pid: int, args: argparse.Namespace, board: Board) -> None:
    readers = await open_streams(url, args.streams, args, board, args.tokens)
    guests = await open_streams(url, args.burst, args, board, BURST_TOKENS)
    begin = perf_counter()
    for reader in readers:
        reader.ask()
    await until(lambda: min(reader.tokens for reader in readers) >= args.tokens // 10)
    print(f"start: {args.streams} requests at once, all streaming after {first_chunk(readers) - begin:.3f} s")
    gc.freeze()
    before, counted = usage(pid), count(readers)
    if guests:
        await asyncio.sleep(1.0)
        begin = perf_counter()
        for guest in guests:
            guest.ask()
    await until(lambda: max(reader.tokens for reader in readers) >= args.tokens * 9 // 10)
    (seconds, user, system), (tokens, frames) = usage(pid) - before, count(readers) - counted
    await asyncio.gather(*(reader.done for reader in (*readers, *guests)))
    whole = args.tokens * APIS[args.api].tellings
    assert all(reader.tokens == whole for reader in readers), "tokens are missing"
    if not tokens:
        raise SystemExit("front: some streams were over before all had begun: give them more --tokens")
    print(f"{tokens / seconds:,.0f} tokens/s over {args.streams} streams, {tokens / frames:.2f} tokens a frame")
    print(f"front: {(user + system) / seconds:.0%} of a core, {user / tokens * 1e6:.2f} us user")
    print(f"       and {system / tokens * 1e6:.2f} us system a token")
    tell("tick to client", latencies(readers, board, before[0], before[0] + seconds))
    if guests:
        tell("tick to client while they came", latencies(readers, board, begin, first_chunk(guests)))
        tell(f"first token of {args.burst} that came at once", [guest.chunks[0][0] - guest.asked for guest in guests])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - readers only count, which is all that they have time for
        await asyncio.sleep(0.01)


def usage(pid: int) -> np.ndarray:
    """Now, and the CPU seconds that a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])
    return np.array([perf_counter(), *used])


def count(readers: Sequence[Reader]) -> np.ndarray:
    """Tokens and frames of all so far."""
    return np.array([[reader.tokens, reader.frames] for reader in readers]).sum(axis=0)


def first_chunk(readers: Sequence[Reader]) -> float:
    """When the last of them got its first tokens."""
    return max(reader.chunks[0][0] for reader in readers)


def latencies(readers: Sequence[Reader], board: Board, begin: float, end: float) -> np.ndarray:
    """Seconds from the tick of every token that arrived in [begin, end) to its arrival."""
    found = []
    for reader in readers:
        num_before = 0
        for at, tokens in reader.chunks:
            if begin <= at < end:  # a stream has a token of every tick from its first on
                found.append(at - board.sent[reader.first_tick + num_before : reader.first_tick + tokens])
            num_before = tokens
    return np.concatenate(found)


def tell(what: str, seconds: Sequence[float] | np.ndarray) -> None:
    low, high, most = 1e3 * np.percentile(seconds, [50, 99, 100])
    print(f"{what}: p50 {low:.2f} ms, p99 {high:.2f} ms, max {most:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", default="client", choices=("client", "server", "engine"))
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tick-ms", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=2000, help="of each stream")
    parser.add_argument("--burst", type=int, default=0, help="requests that come at once after a second")
    parser.add_argument("--prompt-words", type=int, default=50)
    parser.add_argument("--api", default="completions", choices=APIS)
    parser.add_argument("--plain", action="store_true", help="without uvloop and httptools")
    parser.add_argument("--profile", help="where the server writes what cProfile counted")
    parser.add_argument("--board", help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.role == "engine":
        return engine(args)
    if args.role == "server":
        return server(args, flags)
    if flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    allow_many_connections()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=loop_factory()) as runner:
        path = f"{folder}/board"
        board, program = Board.open(path), [__file__, "server", *sys.argv[1:], "--board", path]
        flags = [*FLAGS.split(), "--max-num-seqs", str(args.streams + args.burst)]
        flags += ["--chat-template", "{{ messages[0].content }}"]
        with serving(SHAPE, flags, program=program) as there:
            runner.run(measure(there.url, there.pid, args, board))


if __name__ == "__main__":
    main()
