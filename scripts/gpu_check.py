"""Everything that only a GPU can tell: the GPU tests, and throughput on random weights of real shapes.

python scripts/gpu_check.py                      tests, then all workloads on both shapes
python scripts/gpu_check.py --no-tests --shapes qwen3-0.6b --workloads decode --json out.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import workloads  # noqa: E402
from sapwood.base.sampling import SamplingParams  # noqa: E402
from sapwood.base.wire import Submit  # noqa: E402
from sapwood.config.flags import from_options  # noqa: E402
from sapwood.engine.launch import launch  # noqa: E402
from sapwood.engine.loop import Engine  # noqa: E402

WORKLOADS: dict[str, Callable[[], list[workloads.Workload]]] = {
    "uniform": lambda: [workloads.uniform()],
    "general": lambda: [workloads.general()],
    "shared": lambda: [workloads.shared_prefix()],
    "decode": lambda: [workloads.decode(1, 128, 256), workloads.decode(32, 128, 256), workloads.decode(256, 128, 256)],
    "prefill": lambda: [workloads.prefill()],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true", help="skip pytest -m gpu")
    parser.add_argument("--shapes", nargs="*", default=["qwen3-0.6b", "llama-8b"], help="folders of bench/shapes")
    parser.add_argument("--workloads", nargs="*", default=["decode", "uniform", "shared", "prefill"], choices=WORKLOADS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    failed = 0
    if not args.no_tests:
        failed = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], cwd=ROOT
        ).returncode
    rows = []
    for shape in args.shapes:
        for row in measure(shape, args):
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            rows.append(row)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    return failed


def measure(shape: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row per workload of the shape, after a warm-up that every kernel of the workload has run in."""
    began = perf_counter()
    config = from_options(
        {
            "model": str(ROOT / "bench" / "shapes" / shape),
            "load_format": "dummy",
            "device": args.device,
            "depth": args.depth,
            "max_model_len": 8448,
        }
    )
    engine, facts = launch(config)
    print(
        f"{shape}: ready in {perf_counter() - began:.1f} s {facts.seconds_to_ready}; {facts.decisions[-1]}", flush=True
    )
    run(engine, workloads.decode(8, 600, 8))
    run(engine, workloads.decode(256, 40, 8))
    rows = []
    for name in args.workloads:
        for workload in WORKLOADS[name]():
            engine.scheduler.kv.flush()
            rows.append({"model": shape, **run(engine, workload)})
    engine.executor.shutdown()
    return rows


def run(engine: Engine, workload: workloads.Workload) -> dict[str, object]:
    """Serve a workload to its end. `decode_ms` is the median time between steps in which every row only decodes."""
    before = dict(engine.counters)
    hosts = dict(engine.seconds)
    began = perf_counter()
    for id, (prompt, output_len) in enumerate(zip(workload.prompts, workload.output_lens, strict=True)):
        params = SamplingParams(max_tokens=output_len, temperature=workload.temperature, ignore_eos=True, seed=id)
        assert engine.submit(Submit(id, prompt, params)) is None
    gaps = []
    last, fed = perf_counter(), engine.counters["prompt_tokens"]
    while not engine.idle:
        for news in engine.step():
            failed = [delta.error for delta in news.deltas if delta.finish == "error"]
            assert not failed, failed[0]
        now = perf_counter()
        if engine.counters["prompt_tokens"] == fed:
            gaps.append(now - last)
        last, fed = now, engine.counters["prompt_tokens"]
    seconds = perf_counter() - began
    steps = engine.counters["steps"] - before["steps"]
    return {
        "workload": workload.name,
        "seconds": round(seconds, 2),
        "output_tok_s": round(workload.num_output / seconds),
        "input_tok_s": round(workload.num_input / seconds),
        "decode_ms": round(1e3 * sorted(gaps)[len(gaps) // 2], 2) if gaps else None,
        "steps": steps,
        "host_us_per_step": round(1e6 * (engine.seconds["host_seconds"] - hosts["host_seconds"]) / steps),
        "cached_tokens": engine.counters["cached_tokens"] - before["cached_tokens"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
