"""How fast the HTTP front passes tokens on, whatever the engine.

Three processes: the real server (uvicorn, the application, the real tokenizer if it can be had), a stand-in for the
engine that speaks its protocol and yields one token per stream and tick, and this one, which holds the streams.

    python bench/front.py                                256 streams, a tick every 4 ms
    python bench/front.py --streams 1024 --tick-ms 16
    python bench/front.py --tick-ms 0                    as fast as the tokens arrive here (two ticks may be on their way)
    python bench/front.py --burst 1000                   so many requests more, all at once, in the middle

Every token's text holds exactly one space and no brace, so the client counts tokens and frames by counting bytes.
Latency runs from the moment at which the engine has sent a tick to the moment at which its tokens are read here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgspec
import numpy as np

MOST_TICKS = 1 << 20
AHEAD = 2  # ticks that may be on their way with --tick-ms 0
BURST_TOKENS = 8
SPARE_VOCAB_SIZE = 8192  # of the tokenizer that stands in for the real one


class Board:
    """What the engine and the client tell each other beside the server: when each tick was sent, how much arrived."""

    def __init__(self, folder: str, *, fresh: bool = False) -> None:
        path = Path(folder) / "board"
        if fresh:
            path.write_bytes(bytes(64 + 8 * MOST_TICKS))
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        self.sent = np.frombuffer(memory, np.float64, MOST_TICKS, 64)
        self.arrived = np.frombuffer(memory, np.int64, 1, 0)


# -- the stand-in for the engine ---------------------------------------------------------------------------------------


def engine(args: argparse.Namespace) -> None:
    """Waits for all streams, then yields a token for each per tick; later requests join at the next tick."""
    from sapwood.base.wire import Abort, Delta, Deltas, Facts, Ready, Reply, Submit
    from sapwood.engine import process

    post = process.Post(msgspec.msgpack.decode(process._read_start(), type=process.Start).folder)
    board = Board(args.folder)
    ids = json.loads(Path(f"{args.folder}/ids").read_text())
    sizes = {"max_model_len": 1 << 20, "max_num_seqs": 4096, "max_num_batched_tokens": 8192, "page_size": 16}
    device = dict.fromkeys(("device", "dtype", "attention_backend"), "none")
    told = {**sizes, **device, "vocab_size": args.vocab_size, "num_pages": [1 << 16]}
    post.send(Ready(msgspec.convert(told | {"seconds_to_ready": {}, "decisions": []}, Facts)))
    draws = np.random.default_rng(0).choice(ids, (64, 8192)).tolist()
    live: dict[int, int] = {}  # tokens left
    fresh: list[Submit] = []
    tick, due = -1, 0.0
    while os.getppid() == args.parent:
        for message in post.receive(0.1 if tick < 0 else 0):
            if isinstance(message, Submit):
                fresh.append(message)
            elif isinstance(message, Abort):
                for id in message.ids:
                    live.pop(id, None)
            else:
                post.send(Reply(message.id, {}))
        if tick < 0:
            if len(fresh) < args.streams:
                continue
            tick, due = 0, monotonic()
        if not live and not fresh:
            sleep(0.001)
            continue
        tokens = draws[tick % len(draws)]
        first = [Delta(message.id, [tokens[-1 - i]], cached_tokens=0) for i, message in enumerate(fresh)]
        ended = [Delta(id, tokens[-1:], finish="length") for id, left in live.items() if left == 1]
        live = {id: left - 1 for id, left in live.items() if left > 1}
        steady = list(live)
        live |= {message.id: (message.params.max_tokens or 1) - 1 for message in fresh}
        fresh = []
        if args.tick_ms:
            sleep(max(due - monotonic(), 0))
            due = max(due + args.tick_ms / 1000, monotonic() - 0.1)
        while not args.tick_ms and board.arrived[0] < (tick - AHEAD) * args.streams and os.getppid() == args.parent:
            sleep(5e-5)
        board.sent[tick] = monotonic()
        post.send(Deltas(steady, tokens[: len(steady)], first + ended))
        tick += 1


# -- the server --------------------------------------------------------------------------------------------------------


def server(args: argparse.Namespace) -> None:
    if args.plain:
        sys.modules["uvloop"] = sys.modules["httptools"] = None  # type: ignore[assignment]
    from sapwood.config import Config
    from sapwood.config.options import ServerConfig
    from sapwood.engine.process import start
    from sapwood.engine.spawn import spawn
    from sapwood.server import create_app, run, serve

    command = [sys.executable, __file__, "engine", "--folder", args.folder, "--vocab-size", str(args.vocab_size)]
    command += ["--streams", str(args.streams), "--tick-ms", str(args.tick_ms), "--parent", str(os.getpid())]
    config = Config(server=ServerConfig(port=0, drain_seconds=0.0))

    async def main() -> None:
        text = load_text(args.folder)
        async with start(config, spawn(command)) as front:
            app = create_app(front, text, config, "model")
            await serve(app, config, on_ready=lambda url: print(url, flush=True))

    if not args.profile:
        return run(main())
    import cProfile

    with cProfile.Profile() as profile:
        run(main())
    profile.dump_stats(args.profile)


def load_text(folder: str) -> Any:
    """SmolLM2's text side, or one in which every token is a word, where it cannot be had."""
    from sapwood.base.errors import SapwoodError
    from sapwood.hub.files import ModelFiles, find
    from sapwood.text import TextModel

    try:
        return TextModel.load(find("smollm2-135m"))
    except (SapwoodError, OSError):
        from sapwood.bench.spawn import write_tokenizer

        write_tokenizer(Path(folder), SPARE_VOCAB_SIZE)
        return TextModel.load(ModelFiles("model", Path(folder), "hf", {}, {}))


# -- the client --------------------------------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """One stream: asks when it is told to, then counts tokens and frames as they come."""

    def __init__(self, request: bytes, braces_per_frame: int, board: Board) -> None:
        self._request, self._braces_per_frame, self._board = request, braces_per_frame, board
        self._begun = False
        self._spaces = self._braces = 0
        self.asked = 0.0
        self.chunks: list[tuple[float, int]] = []  # when, and how many tokens by then
        self.done = asyncio.get_running_loop().create_future()

    @property
    def frames(self) -> int:
        return self._braces // self._braces_per_frame

    @property
    def tokens(self) -> int:
        return self._spaces - self.frames  # a frame has one space of its own, behind "data:"

    def ask(self) -> None:
        self.asked = monotonic()
        self.transport.write(self._request)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        if not self._begun:
            head, _, data = data.partition(b"\r\n\r\n")
            assert b" 200 " in head, head + data
            self._begun = True
        before = self.tokens
        self._spaces += data.count(b" ")
        self._braces += data.count(b"{")
        over = data.endswith(b"0\r\n\r\n")
        self._spaces -= over  # that of "data: [DONE]"
        self.chunks.append((now, self.tokens))
        self._board.arrived[0] += self.tokens - before
        if over:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))


def usage(pid: int) -> np.ndarray:
    """Now, and the CPU seconds that a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return np.array([monotonic(), *(int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])])


async def open_streams(url: str, count: int, args: argparse.Namespace, board: Board, max_tokens: int) -> list[Reader]:
    body: dict[str, Any] = {"stream": True, "ignore_eos": True, "max_tokens": max_tokens}
    path, braces, prompt = "/v1/completions", 2, "word " * args.prompt_words
    if args.api == "chat":
        path, braces = "/v1/chat/completions", 3
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    host, port = url.removeprefix("http://").split(":")
    make = lambda: Reader(head.encode() + raw, braces, board)  # noqa: E731
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(make, host, int(port)))[1] for _ in range(count)]


async def measure(url: str, pid: int, args: argparse.Namespace, board: Board) -> None:
    readers = await open_streams(url, args.streams, args, board, args.tokens)
    guests = await open_streams(url, args.burst, args, board, BURST_TOKENS)
    begin = monotonic()
    for reader in readers:
        reader.ask()
    await until(lambda: min(reader.tokens for reader in readers) >= args.tokens // 10)
    print(f"start: {args.streams} requests at once, all streaming after {first_chunk(readers) - begin:.3f} s")
    gc.freeze()
    before, counted = usage(pid), count(readers)
    if guests:
        await asyncio.sleep(1.0)
        begin = monotonic()
        for guest in guests:
            guest.ask()
    await until(lambda: max(reader.tokens for reader in readers) >= args.tokens * 9 // 10)
    after = usage(pid)
    (seconds, user, system), (tokens, frames) = after - before, count(readers) - counted
    print(f"{tokens / seconds:,.0f} tokens/s over {args.streams} streams, {tokens / frames:.2f} tokens a frame")
    print(f"front: {(user + system) / seconds:.0%} of a core, {user / tokens * 1e6:.2f} us user")
    print(f"       and {system / tokens * 1e6:.2f} us system a token")
    tell("tick to client", latencies(readers, board, before[0], after[0]))
    if guests:
        await asyncio.gather(*(guest.done for guest in guests))
        tell("tick to client while they came", latencies(readers, board, begin, first_chunk(guests)))
        waits = np.array([guest.chunks[0][0] - guest.asked for guest in guests])
        tell(f"first token of {args.burst} that came at once", waits)
    await asyncio.gather(*(reader.done for reader in readers))
    assert all(reader.tokens == args.tokens for reader in readers), "tokens are missing"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - readers only count, which is all that they have time for
        await asyncio.sleep(0.01)


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
        ticks = 0  # the i-th token of a stream is that of the i-th tick: all streams began together
        for at, tokens in reader.chunks:
            if begin <= at < end:
                found.append(at - board.sent[ticks:tokens])
            ticks = max(ticks, tokens)
    return np.concatenate(found)


def tell(what: str, seconds: np.ndarray) -> None:
    low, high, most = np.percentile(seconds * 1000, [50, 99, 100])
    print(f"{what}: p50 {low:.2f} ms, p99 {high:.2f} ms, max {most:.2f} ms")


async def client(args: argparse.Namespace) -> None:
    text = load_text(args.folder)
    pieces = {id: text.token_text(id) for id in range(text.vocab_size)}
    ids = [id for id, piece in pieces.items() if piece.count(" ") == 1 and not set(piece) & set("{\ufffd")]
    Path(f"{args.folder}/ids").write_text(json.dumps(ids))
    board = Board(args.folder, fresh=True)
    command = [sys.executable, __file__, "server", *sys.argv[1:], "--folder", args.folder]
    command += ["--vocab-size", str(text.vocab_size)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        await measure(url, process.pid, args, board)
    finally:
        process.terminate()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", default="client", choices=("client", "server", "engine"))
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tick-ms", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=2000, help="of each stream")
    parser.add_argument("--burst", type=int, default=0, help="requests that come at once after a second")
    parser.add_argument("--prompt-words", type=int, default=50)
    parser.add_argument("--api", default="completions", choices=("completions", "chat"))
    parser.add_argument("--plain", action="store_true", help="without uvloop and httptools")
    parser.add_argument("--profile", help="where the server writes what cProfile counted")
    for own in ("--folder", "--vocab-size", "--parent"):
        parser.add_argument(own, type=str if own == "--folder" else int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role != "client":
        return {"server": server, "engine": engine}[args.role](args)
    from sapwood.server import run

    with tempfile.TemporaryDirectory() as args.folder:
        run(client(args))


if __name__ == "__main__":
    main()
