"""How long a key waits for its first token alone, and while another key has hundreds of requests queued.

    python scripts/fairness.py [--model smollm2-135m] [--crowd 500] [--requests 20] [--prompt 512] [--output 64] [-- OPTIONS]

Starts a server with two keys (OPTIONS are its own, such as --schedule-policy fcfs), asks with one of them, one request after
the other, first alone and then beside the other's crowd. Exit code 1 where the median is more than doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import httpx

KEYS = {"keys": [{"name": name, "key": name} for name in ("crowd", "other")]}
MOST = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--crowd", type=int, default=500)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("options", nargs="*", help="of the server, behind --")
    args = parser.parse_args()
    with serving(args.model, args.options) as url:
        return asyncio.run(compare(args, url))


@contextlib.contextmanager
def serving(model: str, options: list[str]) -> Iterator[str]:
    """The URL of a server."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.json")
        keys.write_text(json.dumps(KEYS))
        command = [
            sys.executable,
            "-m",
            "sapwood",
            "serve",
            model,
            "--port",
            "0",
            "--api-keys-file",
            str(keys),
            *options,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                yield next(found[1] for line in server.stdout if (found := re.search(r"ready at (\S+)", line)))
            finally:
                server.terminate()
                server.stdout.read()


async def compare(args: argparse.Namespace, url: str) -> int:
    chance = random.Random(0)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as http:

        async def first_token(key: str) -> float:
            body = {
                "prompt": [chance.randrange(1000, 40000) for _ in range(args.prompt)],
                "max_tokens": args.output,
                "ignore_eos": True,
                "stream": True,
            }
            began, first = perf_counter(), 0.0
            async with http.stream("POST", "/v1/completions", json=body, headers={"x-api-key": key}) as reply:
                assert reply.status_code == 200, await reply.aread()
                async for line in reply.aiter_lines():
                    first = first or (perf_counter() if line else 0.0)
            return first - began

        await first_token("other")  # what only a first request takes
        alone = [await first_token("other") for _ in range(args.requests)]
        crowd = [asyncio.create_task(first_token("crowd")) for _ in range(args.crowd)]
        await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
        beside = [await first_token("other") for _ in range(args.requests)]
        waiting = sum(not task.done() for task in crowd)
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)
    print(f"alone   {worded(alone)}")
    print(f"beside  {worded(beside)}   ({args.crowd} requests of the other key, {waiting} of them not done in the end)")
    ratio = median(beside) / median(alone)
    print(f"ratio   {ratio:.2f}")
    return int(ratio > MOST or not waiting)


def worded(seconds: list[float]) -> str:
    return f"first token after {median(seconds) * 1000:.0f} ms (median), {quantiles(seconds, n=10)[-1] * 1000:.0f} ms (p90)"


if __name__ == "__main__":
    sys.exit(main())
