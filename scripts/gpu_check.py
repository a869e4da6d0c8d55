"""Everything that only a GPU can tell: the GPU tests, then the offline benchmarks on random weights of real shapes.

python scripts/gpu_check.py                      tests, then all workloads on both shapes; about 8 minutes at most
python scripts/gpu_check.py --no-tests --shapes qwen3-0.6b --workloads w5 w1 --json out.json
python scripts/gpu_check.py --no-tests --engine max_num_seqs=512 depth=0 --compare before.json

Each shape is measured in a process of its own, and in a new one after a failure, so that a workload that fails costs
no other one. Rows are printed, and written to --json, as soon as they are there.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, time

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sapwood.base.errors import UserError  # noqa: E402
from sapwood.bench import offline, report, workloads  # noqa: E402
from sapwood.bench.options import engine_options  # noqa: E402
from sapwood.bench.report import Report, Row  # noqa: E402
from sapwood.bench.target import measure  # noqa: E402
from sapwood.bench.workloads import WorkloadSpec  # noqa: E402
from sapwood.cli.terminal import console, print_tables  # noqa: E402

MAX_MODEL_LEN = 8448
START_SECONDS = 150
"""How long a start, or a warm-up, may take before the process is taken for hung."""
WORKLOADS = ("w5", "w1", "w2", "w3", "w4", "w6")


def main() -> int:
    args = parse()
    began = monotonic()
    try:
        specs = workloads.find_all(args.workloads)
        engine_options(args.engine)
        earlier = report.load(args.compare) if args.compare else None
    except UserError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    if args.child:
        try:
            return measure_all(args.shapes[0], [spec for spec in specs if spec.name in args.child], args)
        except UserError as error:
            print(f"gpu_check: {error}", file=sys.stderr)
            return 2
    failed = False
    if not args.no_tests:
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        failed = subprocess.run(tests, cwd=ROOT).returncode != 0
    found = report.new_report({"engine": args.engine, "shapes": args.shapes, "scale": args.scale})
    for shape in args.shapes:
        bench(shape, specs, args, found, until=began + args.budget)
    out = console()
    out.print()
    print_tables(out, report.tables(found.rows))
    if earlier is not None:
        out.print()
        print_tables(out, [report.change_table(report.compare(earlier, found))])
    return int(failed or found.failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true", help="skip pytest -m gpu")
    parser.add_argument("--shapes", nargs="+", default=["qwen3-0.6b", "llama-8b"], help="of sapwood/bench/shapes")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, help=f"names or numbers ({' '.join(WORKLOADS)})")
    parser.add_argument("--engine", nargs="+", default=[], metavar="NAME=VALUE", help="options of the engine")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each workload; medians are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each workload's tokens")
    parser.add_argument("--max-seconds", type=float, default=90, help="cut a workload off after this")
    parser.add_argument("--budget", type=float, default=480, help="begin no workload after so many seconds")
    parser.add_argument("--json", type=Path, help="also write the rows here, as `sapwood bench --json` does")
    parser.add_argument("--compare", type=Path, help="show ratios to a file that --json has written")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)  # the workloads that this very process measures
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- the process that watches -----------------------------------------------------------------------------------------


def bench(shape: str, specs: list[WorkloadSpec], args: argparse.Namespace, found: Report, *, until: float) -> None:
    """Measure a shape, in as many processes as it takes, into `found`."""
    left = list(specs)
    while left:
        if monotonic() > until:
            _add(found, [_lost(shape, spec, "not run: time is up") for spec in left], args)
            return
        before = len(found.rows)
        why = run_child(shape, left, args, found, until=until)
        rows = found.rows[before:]
        num_done = sum(row.kind != "start" for row in rows)
        if not rows:
            _add(found, [_lost(shape, None, f"did not start: {why}")], args)
            return
        if num_done < len(left) and why:
            _add(found, [_lost(shape, left[num_done], why)], args)
            num_done += 1
        left = left[num_done:]


def run_child(shape: str, specs: list[WorkloadSpec], args: argparse.Namespace, found: Report, *, until: float) -> str:
    """Take over what one process finds. Returns why it ended early, if it did without saying so itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--shapes", shape, "--workloads", *args.workloads]
        command += ["--device", args.device, "--repeat", str(args.repeat), "--scale", str(args.scale)]
        command += ["--max-seconds", str(args.max_seconds), "--json", str(path)]
        command += ["--until", str(time() + until - monotonic()), *(["--engine", *args.engine] if args.engine else [])]
        first, seen = len(found.rows), 0
        with subprocess.Popen([*command, "--child", *(spec.name for spec in specs)]) as child:
            heard, why = monotonic(), ""
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
                if path.exists() and (size := path.stat().st_mtime_ns) != seen:
                    heard, seen = monotonic(), size
                    _take(path, found, first, args)
                elif monotonic() - heard > args.repeat * args.max_seconds + START_SECONDS:
                    child.kill()
                    why = "it hung and was ended"
            if path.exists():
                _take(path, found, first, args)
            return why or (f"the process ended with exit code {child.returncode}" if child.returncode else "")


def _take(path: Path, found: Report, first: int, args: argparse.Namespace) -> None:
    new = report.load(path)
    del found.rows[first:]
    found.machine, found.versions = new.machine, new.versions
    found.config |= new.config
    _add(found, new.rows, args, quiet=True)


def _add(found: Report, rows: list[Row], args: argparse.Namespace, *, quiet: bool = False) -> None:
    found.rows += rows
    if not quiet:
        for row in rows:
            print(report.line(row), flush=True)
    if args.json:
        report.save(found, args.json)


def _lost(shape: str, spec: WorkloadSpec | None, why: str) -> Row:
    return Row(kind="throughput", name=spec.name if spec else "all", model=Path(shape).name, error=why)


# -- the process that measures ----------------------------------------------------------------------------------------


def measure_all(shape: str, specs: list[WorkloadSpec], args: argparse.Namespace) -> int:
    """Measure until all is done, the engine fails (3), or time is up; rows go to the standard output and to --json."""
    options = {"model": shape, "load_format": "dummy", "device": args.device, "max_model_len": MAX_MODEL_LEN}
    if args.scale != 1:
        options["max_model_len"] = max(spec.make(args.scale).longest for spec in specs) + offline.SPARE_LEN
    opened = offline.open_engine(options | engine_options(args.engine), longest=MAX_MODEL_LEN)
    found = report.new_report({f"decisions of {shape}": opened.facts.decisions})
    load = {} if args.scale == 1 else {"scale": args.scale}
    target = offline.Offline(opened, args.scale, args.repeat, args.max_seconds, load)

    def add(row: Row) -> None:
        print(report.line(row), flush=True)
        found.rows.append(row)
        partial = args.json.with_suffix(".partial")
        report.save(found, partial)
        partial.rename(args.json)  # whoever reads it meanwhile reads all of it

    add(opened.row())
    for spec in specs:
        if time() > args.until:
            add(_lost(shape, spec, "not run: time is up"))
            continue
        for row in measure(target, [spec]):
            add(row)
        if opened.broken:
            return 3
    opened.engine.executor.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
