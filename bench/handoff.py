"""A prompt that another engine has read, fetched by each way, against computing it.

    python bench/handoff.py                              the small real model, a prompt of 2,048 tokens
    python bench/handoff.py --model PATH --tokens 8192

Seconds from the arrival of a prompt to its first token, at an engine that has nothing of it; the other engine is a process on the same machine
and has read it by then.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
from time import perf_counter

from sapwood.base.handoff import Door, Fetch, Handoff, Offer
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import Launched, launch
from sapwood.engine.loop import Engine
from sapwood.stores.handoff import SharedTransfer


def prompt(length: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randrange(100, 10_000) for _ in range(length)]


def started(args: argparse.Namespace, role: str) -> Launched:
    room = {"max_model_len": args.tokens + 64, "max_total_tokens": 2 * args.tokens + 256, "max_num_seqs": 4}
    return launch(from_options({"model": args.model, "max_num_batched_tokens": 2048, "role": role} | room))


def visit(engine: Engine, tokens: list[int], handoff: Handoff | None = None) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt's were there."""
    began, cached = perf_counter(), 0
    params = SamplingParams(max_tokens=1, temperature=0.0)
    assert engine.submit(Submit(0, tokens, params, handoff=handoff)) is None
    while not engine.idle:
        for news in engine.step():
            cached += sum(max(delta.cached_tokens, 0) for delta in news.deltas)
    seconds = perf_counter() - began
    while engine.tidy():
        pass
    return seconds, cached


def ahead(args: argparse.Namespace) -> None:
    """The engine that reads: a ticket a line, and a line back when it has."""
    engine, facts, _ = started(args, "prefill")
    assert facts.door is not None
    print(facts.door.host, facts.door.port, flush=True)
    for line in sys.stdin:
        visit(engine, prompt(args.tokens), Offer(line.strip()))
        print("read", flush=True)
    engine.shutdown()


def measured(engine: Engine, args: argparse.Namespace, door: Door | None, other: subprocess.Popen[str]) -> None:
    """Print the median of some visits; from the other engine if there is a `door`."""
    assert other.stdin is not None
    assert other.stdout is not None
    seconds, cached = [], 0
    for number in range(args.repeat):
        engine.control("flush_cache")
        handoff = None
        if door is not None:
            ticket = f"{number} {perf_counter()}"
            other.stdin.write(ticket + "\n")
            other.stdin.flush()
            other.stdout.readline()
            handoff = Fetch(ticket, door.host, door.port)
        one, cached = visit(engine, prompt(args.tokens), handoff)
        seconds.append(one)
    print(f"    {statistics.median(seconds) * 1000:9.0f} ms   {cached} of {args.tokens} tokens fetched", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ahead", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ahead:
        ahead(args)
        return
    command = [sys.executable, __file__, "--ahead", "--model", args.model, "--tokens", str(args.tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        host, port = other.stdout.readline().split()
        door = Door("prefill", "", host, int(port))
        for way in ("computed", "shared memory", "TCP"):
            engine = started(args, "decode").engine
            if way == "TCP":
                SharedTransfer.add_peer = lambda self, host, port, metadata: None  # type: ignore[method-assign]
            print(way, flush=True)
            measured(engine, args, None if way == "computed" else door, other)
            counts = engine.stats().counters
            print(f"    {sum(counts[f'handoff_bytes_{way}'] for way in ('shm', 'tcp')) / 1e6:.0f} MB", flush=True)
            engine.shutdown()
        other.communicate()


if __name__ == "__main__":
    main()
