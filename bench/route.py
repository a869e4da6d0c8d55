"""What a router costs: `python bench/route.py [--requests 2000] [--streams 50] [--pieces 400]`.

A server that answers at once, in a process of its own, is asked directly and through `sapwood route`, in turns, one request at
a time: what the router adds is the difference of the medians. Then it streams to many clients at once, as fast as it can: pieces
that come through in a second. Server, router and clients share the machine's cores; give it four for the router to have one of its own.
What the router itself computes is told too, as its own processor time (Linux): that says the same on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import aiohttp
from aiohttp import web

BODY = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}], "temperature": 0}
PATH = "/v1/chat/completions"
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--pieces", type=int, default=400, help="of each stream")
    args = parser.parse_args()
    mine, theirs = Pipe()
    server = Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    direct = f"http://127.0.0.1:{mine.recv()}"
    command = [sys.executable, "-m", "sapwood", "route", direct, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as router:
        try:
            assert router.stdout is not None
            routed = router.stdout.readline().removeprefix("sapwood route: ").strip()
            asyncio.run(measure(direct, routed, router.pid, args))
        finally:
            router.terminate()
            server.kill()
    return 0


async def measure(direct: str, routed: str, pid: int, args: argparse.Namespace) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        seconds: dict[str, list[float]] = {direct: [], routed: []}
        used = 0.0
        for number in range(args.requests + 50):
            used = used if number != 50 else computed(pid)
            for url, found in seconds.items():
                began = perf_counter()
                async with client.post(url + PATH, json=BODY) as answer:
                    await answer.read()
                if number >= 50:
                    found.append(perf_counter() - began)
        alone, through = (median(found) for found in seconds.values())
        print(f"one request at a time: {1e3 * alone:.3f} ms directly, {1e3 * through:.3f} ms through the router")
        tail = quantiles(seconds[routed], n=100)[98] - quantiles(seconds[direct], n=100)[98]
        print(f"the router computes {1e3 * (computed(pid) - used) / args.requests:.3f} ms for each")
        print(f"added: {1e3 * (through - alone):.3f} ms at the median, {1e3 * tail:.3f} ms at p99")
        for name, url in (("directly", direct), ("through the router", routed)):
            began, used = perf_counter(), computed(pid)
            pieces = sum(await asyncio.gather(*(stream(client, url, args.pieces) for _ in range(args.streams))))
            print(f"{args.streams} streams {name}: {pieces / (perf_counter() - began):,.0f} pieces a second")
        print(f"the router computes {1e6 * (computed(pid) - used) / pieces:.1f} us for each piece")


def computed(pid: int) -> float:
    """Seconds of a processor that a process has had; nan where the system does not tell."""
    found = Path(f"/proc/{pid}/stat")
    if not found.exists():
        return float("nan")
    user, system = found.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def stream(client: aiohttp.ClientSession, url: str, pieces: int) -> int:
    found = 0
    async with client.post(url + PATH, json=BODY | {"stream": True, "n": pieces}) as answer:
        async for piece in answer.content.iter_any():
            found += piece.count(b"data:")
    return found


def serve(told: Connection) -> None:
    asyncio.run(_serve(told))


async def _serve(told: Connection) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return web.json_response({"model": "m", "choices": [{"message": {"content": "yes"}}]})
        made = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await made.prepare(request)
        for _ in range(body["n"]):
            await made.write(PIECE)
            await asyncio.sleep(0)  # each piece by itself
        return made

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.add_routes([web.post(PATH, answer), web.get("/v1/models", models)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told.send(runner.addresses[0][1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    raise SystemExit(main())
