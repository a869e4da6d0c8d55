"""A server under mixed traffic while its engine is killed and stopped: what has to hold all the time, and what has to be left at the end.

python scripts/soak.py [--seconds 60] [--requests N] [--clients 16] [--fault-every 15] [--seed 0] [--report FILE]

Every route that streams is found from the server's own /openapi.json and asked in turn, whole and streamed: by clients that wait, hang up,
set deadlines, send half of a request or a broken one, for long and short outputs, in a KV pool that holds a few of them. Meanwhile
the engine is killed, stopped for good, and stopped for a moment. It ends with code 1 if anything was wrong:

- an answer of 5xx that was not promised: only 503 with Retry-After while an engine is missing or the queue is full, 504 where a deadline was set;
- a stream that broke off without a word, or an error that no fault explains; anything but 4xx for a broken request;
- /health or /ready that say the wrong thing at any moment;
- pages, file descriptors or memory of the front that have not come back, books of the cache that were wrong;
- a traceback in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.http.dialects import BROKEN, body_of, generating  # noqa: E402
from tests.tiny import write_bytes_model  # noqa: E402

FLAGS = """--load-format dummy --device cpu --dtype float32 --port 0 --served-model-name tiny --max-model-len 1536 --max-total-tokens 2048
    --max-num-seqs 12 --max-queued-requests 8 --watchdog-timeout 4 --max-engine-restarts 1000000 --drain-timeout 60""".split()
NOTICED_SECONDS = 12.0  # after which /health may not say any more that a fault has not happened
LOOK_SECONDS, WEIGH_SECONDS = 0.2, 2.0
GROWTH_BYTES = 24 << 20
PATIENCE = 180.0  # seconds after which an answer is taken never to come
FAILED = re.compile(rb'"error": ?[^n ]|event: error|response.failed')
UNCHUNKED = {"connection": "close"}


@dataclass
class Fault:
    """What was done to an engine, and when the next one was there."""

    kind: str
    began: float
    restarts: int
    back: float | None = None

    def touches(self, begin: float, end: float) -> bool:
        return self.began <= end and (self.back is None or self.back >= begin)


@dataclass
class Answer:
    """`status` is 0 if the connection ended before there was one."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Run:
    """What was seen."""

    url: tuple[str, int]
    pid: int
    random: random.Random
    paths: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    health: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    asked: int = 0
    repaired: float = 0.0
    over: bool = False

    def accuse(self, what: str) -> None:
        self.wrong.append(what[:1000])
        print(f"WRONG: {what}"[:1000], flush=True)

    def faulty(self, begin: float, end: float) -> bool:
        return any(fault.touches(begin, end) for fault in self.faults)

    @property
    def engine(self) -> int | None:
        """The engine's process."""
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            try:
                if b"engine.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
            except OSError:
                continue
        return None


# -- asking -----------------------------------------------------------------------------------------------------------


async def ask(
    run: Run,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    leave: float | None = None,
) -> Answer | None:
    """The answer; None to a client that has left after `leave` seconds."""
    reader, writer = await asyncio.open_connection(*run.url)
    try:
        lines = {
            "host": "soak",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **UNCHUNKED,
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        try:
            async with asyncio.timeout(PATIENCE if leave is None else leave):
                told = await reader.read(-1)
        except TimeoutError:
            if leave is None:
                raise
            return None
        return _parsed(told)
    except ConnectionError:
        return Answer(0, {}, b"")
    finally:
        writer.transport.abort() if run.random.random() < 0.3 else writer.close()


def _parsed(told: bytes) -> Answer:
    head, _, body = told.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked" and not body.endswith(b"0\r\n\r\n"):
        return Answer(0, headers, body)
    return Answer(int(first.split()[1]) if first.startswith("HTTP/1.1 ") else 0, headers, body)


async def half(run: Run) -> None:
    """A client that begins, and goes away or says no more."""
    _, writer = await asyncio.open_connection(*run.url)
    body = json.dumps(body_of(run.random.choice(run.paths), "x", 5)).encode()
    whole = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    writer.write(whole[: run.random.randrange(len(whole))])
    await asyncio.sleep(run.random.uniform(0, 2))
    writer.close()
    run.outcomes["half a request"] += 1


async def generate(run: Run, kind: str) -> None:
    """One request that a server can serve, and what is wrong with its answer."""
    path, stream = run.random.choice(run.paths), run.random.random() < 0.5
    text = "A few words that many requests begin with. " * run.random.choice([1, 1, 2, 6]) + str(
        run.random.randrange(40)
    )
    body = body_of(path, text, run.random.choice([1, 8, 30, 120]), stream=stream)
    headers = {"x-request-timeout": f"{run.random.uniform(0.01, 0.5):.3f}"} if kind == "deadline" else {}
    began = monotonic()
    leave = run.random.uniform(0, 1) if kind == "hang up" else None
    answer = await ask(run, "POST", path, json.dumps(body).encode(), headers, leave=leave)
    faulty = run.faulty(began, monotonic())
    if answer is None:
        run.outcomes["hung up"] += 1
        return
    run.outcomes[f"{path}{' streamed' if stream else ''}: {answer.status}"] += 1
    if answer.status in (503, 529):
        await asyncio.sleep(run.random.uniform(0, 1))  # not as long as was said, but not at once
    if problem := _problem(answer, stream=stream, deadline=kind == "deadline", faulty=faulty):
        run.accuse(f"{problem}: {path} stream={stream} {kind}: {answer.status} {answer.body[-500:]!r}")


def _problem(answer: Answer, *, stream: bool, deadline: bool, faulty: bool) -> str | None:
    late, dead = b"has not finished within" in answer.body, b"it is started again" in answer.body
    match answer.status:
        case 200 if stream and FAILED.search(answer.body) and not (late or dead):
            return "a stream ended with an error that was not promised"
        case 200 if late and not deadline:
            return "a deadline that nobody had set"
        case 200 if dead and not faulty:
            return "a death without a fault"
        case 200:
            return None
        case 504 if deadline:
            return None
        case 503 | 529 if "retry-after" not in answer.headers:
            return "it does not say when to come again"
        case 503 | 529 if b"already; try again" in answer.body or faulty:
            return None
        case 0:
            return "the connection broke off"
        case _:
            return "an answer that was not promised"


async def misbehave(run: Run) -> None:
    body, headers = run.random.choice(BROKEN)
    path = run.random.choice(run.paths)
    answer = await ask(run, "POST", path, body, headers)
    assert answer is not None
    run.outcomes[f"broken: {answer.status}"] += 1
    if not 400 <= answer.status < 500:
        run.accuse(f"{answer.status} for a broken request to {path}: {body[:80]!r} {headers} {answer.body[:300]!r}")


async def client(run: Run, most: int) -> None:
    while not run.over and run.asked < most:
        run.asked += 1
        try:
            match run.random.choices(["plain", "hang up", "deadline", "broken", "half"], [50, 20, 10, 12, 8])[0]:
                case "broken":
                    await misbehave(run)
                case "half":
                    await half(run)
                case kind:
                    await generate(run, kind)
        except Exception as error:
            run.accuse(f"a client saw {type(error).__name__}: {error}")
        if run.random.random() < 0.1:
            await asyncio.sleep(run.random.uniform(0, 1))


# -- faults, and looking on -------------------------------------------------------------------------------------------


async def harm(run: Run, every: float) -> None:
    """Do something to the engine from time to time; the next thing when all is well again."""
    while True:
        await asyncio.sleep(run.random.uniform(0.5, 1.5) * every)
        pid = run.engine
        if pid is None:
            continue
        kind = run.random.choice(["kill", "stop", "crash", "pause"])
        if kind == "pause":  # nobody may notice
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(run.random.uniform(0.1, 1.5))
            os.kill(pid, signal.SIGCONT)
            run.outcomes["engine paused"] += 1
            continue
        fault = Fault(kind, monotonic(), (await state(run, "/health"))[1].get("restarts", 0))
        run.faults.append(fault)
        os.kill(pid, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "crash": signal.SIGSEGV}[kind])
        while fault.back is None:
            await asyncio.sleep(LOOK_SECONDS)
            if run.over:
                return


async def state(run: Run, path: str) -> tuple[int, dict[str, Any]]:
    answer = await ask(run, "GET", path)
    assert answer is not None
    try:
        return answer.status, json.loads(answer.body)
    except ValueError:
        return answer.status, {}


async def look(run: Run, path: str) -> None:
    """Ask how the server is, again and again, and compare with what is known."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        began = monotonic()
        status, told = await state(run, path)
        now = monotonic()
        run.health[f"{path} {status} {told.get('status')}"] += 1
        open_fault = next((fault for fault in run.faults if fault.back is None), None)
        if status == 200 and open_fault is not None and told["restarts"] > open_fault.restarts:
            open_fault.back = now
        elif status == 200 and open_fault is not None and began > open_fault.began + NOTICED_SECONDS:
            run.accuse(f"{path} is well {began - open_fault.began:.1f} s after {open_fault.kind}")
        elif status != 200 and not run.faulty(began, now):
            run.accuse(f"{path} says {status} {told} and nothing has happened")


async def weigh(run: Run) -> None:
    """The front's memory, and the engine's count of wrong books."""
    while True:
        run.memory.append(_resident(run.pid))
        metrics = await ask(run, "GET", "/metrics")
        assert metrics is not None
        if found := re.search(rb"\nsapwood_engine_repaired_pages_total (\S+)", metrics.body):
            run.repaired = max(run.repaired, float(found[1]))
        await asyncio.sleep(WEIGH_SECONDS)


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- the run ----------------------------------------------------------------------------------------------------------


async def settled(run: Run) -> dict[str, float]:
    """What the server holds when nothing runs: pages in use, descriptors of the front."""
    deadline = monotonic() + PATIENCE
    while True:
        status, told = await state(run, "/ready")
        metrics = await ask(run, "GET", "/metrics")
        assert metrics is not None
        found = dict(re.findall(r'sapwood_pages{group="0",state="(\w+)"} (\S+)', metrics.body.decode()))
        if status == 200 and told["running"] == told["waiting"] == 0 and found:
            break
        if monotonic() > deadline:
            run.accuse(f"it does not come to rest: {status} {told}")
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(2.0)  # for connections that have ended to be seen to have
    used = float(found.get("total", 0)) - float(found.get("free", 0)) - float(found.get("evictable", 0))
    return {"pages": used, "descriptors": len(os.listdir(f"/proc/{run.pid}/fd"))}


async def soak(run: Run, args: argparse.Namespace) -> None:
    document = await ask(run, "GET", "/openapi.json")
    assert document is not None
    run.paths = generating(json.loads(document.body))
    print("routes:", *run.paths, flush=True)
    for path in run.paths:
        for stream in (False, True):
            await ask(run, "POST", path, json.dumps(body_of(path, "warm up", 4, stream=stream)).encode())
    before = await settled(run)
    background = [
        asyncio.create_task(work)
        for work in (look(run, "/health"), look(run, "/ready"), weigh(run), harm(run, args.fault_every))
    ]
    clients = [asyncio.create_task(client(run, args.requests)) for _ in range(args.clients)]
    await asyncio.wait(clients, timeout=args.seconds)
    run.over = True
    await asyncio.wait(clients, timeout=2 * PATIENCE)
    for task in background:
        if task.done() and (error := task.exception()):
            run.accuse(f"what looks on has ended: {error!r}")
        task.cancel()
    await asyncio.wait(background)
    after = await settled(run)
    for name, was in before.items():
        if after[name] > was + (2 if name == "descriptors" else 0):
            run.accuse(f"{name}: {was:g} before, {after[name]:g} after")
    if run.repaired:
        run.accuse(f"{run.repaired:g} entries of the books were wrong")
    if (growth := _growth(run.memory)) > GROWTH_BYTES:
        run.accuse(f"the front has grown by {growth >> 20} MiB")


def _growth(memory: Sequence[int]) -> int:
    """From the second quarter of the time to the last."""
    quarter = len(memory) // 4
    return (
        0
        if not quarter
        else int(statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter]))
    )


def told(run: Run, seconds: float) -> dict[str, Any]:
    """The figures."""
    gaps = [fault.back - fault.began for fault in run.faults if fault.back is not None]
    return {
        "seconds": round(seconds),
        "requests": run.asked,
        "outcomes": dict(sorted(run.outcomes.items())),
        "health": dict(sorted(run.health.items())),
        "faults": dict(Counter(fault.kind for fault in run.faults)),
        "seconds from a fault to the next engine": {"median": statistics.median(gaps), "most": max(gaps)} if gaps else {},
        "front MiB": {"first": run.memory[0] >> 20, "growth": _growth(run.memory) / (1 << 20), "most": max(run.memory) >> 20},
        "wrong": len(run.wrong),
    }  # fmt: skip


async def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        write_bytes_model(Path(folder))
        log = Path(folder) / "log"
        with log.open("wb") as lines:
            command = [sys.executable, "-m", "sapwood", "serve", "--model", folder, *FLAGS]
            server = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=lines, cwd=ROOT
            )
        assert server.stdout is not None
        url = None
        async for line in server.stdout:
            if url := re.search(rb"ready at http://([^:]+):(\d+)", line):
                break
        assert url is not None, log.read_text()
        run = Run((url[1].decode(), int(url[2])), server.pid, random.Random(args.seed))
        began = monotonic()
        try:
            await soak(run, args)
            server.send_signal(signal.SIGTERM)
            if code := await asyncio.wait_for(server.wait(), PATIENCE):
                run.accuse(f"it ended with exit code {code}")
        finally:
            if server.returncode is None:
                server.kill()
        said = log.read_text()
        for mark in ("Traceback", "never retrieved", "unexpected error"):
            if mark in said:
                run.accuse(f"the log has {mark!r}: {said[said.index(mark) - 200 :][:1500]}")
        figures = told(run, monotonic() - began)
    print(json.dumps(figures, indent=1))
    if args.report:
        Path(args.report).write_text(json.dumps(figures, indent=1))
    return 1 if run.wrong else 0


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=sys.maxsize, help="end sooner, after so many")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--fault-every", type=float, default=15.0, help="seconds between two faults, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", help="a file for the figures, as JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(parsed())))
