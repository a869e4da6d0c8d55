"""A prefix from each store against computing it, and a restart to its first token.

    python bench/stores.py                              the small real model, a prefix of 4,096 tokens
    python bench/stores.py --model PATH --tokens 8192

Seconds from the arrival of a prompt to its first token. Before each visit the device's cache is emptied; the directory's
pages may be in the operating system's cache. `restart` is a new process, from its start to the first token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from time import perf_counter

_BEGAN = perf_counter()

from sapwood.base.sampling import SamplingParams  # noqa: E402 (the clock runs first)
from sapwood.base.wire import Submit  # noqa: E402
from sapwood.config.flags import from_options  # noqa: E402
from sapwood.engine.launch import launch  # noqa: E402
from sapwood.engine.loop import Engine  # noqa: E402


def prompt(length: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randrange(100, 10_000) for _ in range(length)]


def started(args: argparse.Namespace, **options: str) -> Engine:
    room = {"max_model_len": args.tokens + 64, "max_total_tokens": 2 * args.tokens + 256, "max_num_seqs": 4}
    return launch(from_options({"model": args.model, "max_num_batched_tokens": 2048} | room | options)).engine


def visit(engine: Engine, tokens: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt's were cached."""
    began, cached = perf_counter(), 0
    assert engine.submit(Submit(0, tokens, SamplingParams(max_tokens=1, temperature=0.0))) is None
    while not engine.idle:
        for news in engine.step():
            cached += sum(max(delta.cached_tokens, 0) for delta in news.deltas)
    seconds = perf_counter() - began
    while engine.tidy():
        pass
    return seconds, cached


def visits(engine: Engine, args: argparse.Namespace, name: str, *, first: str) -> None:
    tokens = prompt(args.tokens)
    visit(engine, tokens[:64][::-1])
    report(first, *visit(engine, tokens))
    seconds = []
    for _ in range(args.repeat):
        engine.control("flush_cache")
        one, cached = visit(engine, tokens)
        seconds.append(one)
    report(name, statistics.median(seconds), cached)
    told = engine.stats()
    for kind, count in told.counters.items():
        if "_bytes_" in kind and count:
            print(f"    {kind} {count / 1e6:.0f} MB", flush=True)


def report(name: str, seconds: float, cached: int) -> None:
    print(f"{name:28} {seconds * 1000:9.0f} ms   {cached} tokens cached", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--from-store", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.from_store is not None:
        options = {"kv_store": args.from_store} if args.from_store else {}
        engine = started(args, **options)
        _, cached = visit(engine, prompt(args.tokens))
        report("restart" if options else "restart, computed", perf_counter() - _BEGAN, cached)
        engine.shutdown()
        return
    with tempfile.TemporaryDirectory() as folder:
        place = f"file:{folder}?size=16G"
        for name, store in (("host memory", "host:8G"), ("disk", place)):
            engine = started(args, kv_store=store)
            visits(engine, args, name, first=f"computed, kept in {name}")
            engine.shutdown()
        engine = started(args)
        visits(engine, args, "computed again", first="computed, kept nowhere")
        engine.shutdown()
        same = ["--model", args.model, "--tokens", str(args.tokens)]
        for store in ("", place):
            subprocess.run([sys.executable, __file__, *same, "--from-store", store], check=True)


if __name__ == "__main__":
    main()
