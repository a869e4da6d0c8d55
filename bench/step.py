"""Where the time of a decode step goes on a CPU: the model, and all that is around it.

    python bench/step.py                                  the small model, 1, 8 and 32 greedy rows
    python bench/step.py MODEL --rows 1 --temperature 0.7 --top-p 0.9

Microseconds, medians. Parts are measured where they are called, so those that call others include them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.bench.statistics import timing
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from sapwood.runner import step as steps

WARM_STEPS = 30
DEVICE = ("model", "logits", "attention")
"""What a device of its own would do; the rest is the host's share."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=-1)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args(argv)
    for num_rows in args.rows:
        engine, *_ = launch(from_options({"model": args.model, "device": "cpu"}))
        show(num_rows, measure(engine, num_rows, args))
        engine.executor.shutdown()
    return 0


def measure(engine: Engine, num_rows: int, args: argparse.Namespace) -> dict[str, float]:
    """Median microseconds of a step and of its parts."""
    choice = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    params = SamplingParams(max_tokens=WARM_STEPS + args.steps + 9, ignore_eos=True, **choice)
    for row in range(num_rows):
        engine.submit(Submit(row, [*range(10 + row, 40 + row)], params))
    for _ in range(WARM_STEPS):
        engine.step()
    worker: Any = engine.executor.worker  # type: ignore[attr-defined]
    parts = [
        ("plan", engine.scheduler, "plan"),
        ("frame", steps.frame, "exact"),
        ("batch", worker._step.batcher, "make"),
        *(("attention", backend, "plan") for backend in worker.backends),
        ("model", worker.model, "forward"),
        ("logits", worker.model, "logits"),
        ("draw", steps, "draw"),
        ("put", worker._step.batcher, "settle"),
        ("sample", worker, "sample"),
        ("result", worker, "result"),
        ("commit", engine.scheduler, "commit"),
        ("step", engine, "step"),
    ]
    with timing(parts) as found:
        for _ in range(args.steps):
            engine.step()
    # A part that is there several times, such as the plans of several groups, adds up over a step.
    return {
        name: 1e6 * statistics.median(times) * round(len(times) / args.steps) for name, times in found.items() if times
    }


def show(num_rows: int, found: dict[str, float]) -> None:
    whole = found["step"]
    host = whole - sum(found.get(name, 0.0) for name in DEVICE)
    print(f"{num_rows} rows: {whole:.0f} µs a step, {host:.0f} µs ({host / whole:.0%}) of them around the model")
    print("   " + ", ".join(f"{name} {time:.0f}" for name, time in found.items() if name != "step"), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
