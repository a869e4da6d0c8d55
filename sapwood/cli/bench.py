"""`sapwood bench`: how fast it is. Offline in this process, over HTTP against any server, or the host alone."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sapwood.base.errors import UserError
from sapwood.base.kv import page_size_problem
from sapwood.bench import options
from sapwood.config import env
from sapwood.config.flags import add_flags, from_options, given

if TYPE_CHECKING:
    from sapwood.bench.load import Load
    from sapwood.bench.report import Report, Row
    from sapwood.bench.workloads import WorkloadSpec

HELP = "measure throughput, latency, a server under load, or the host alone"

_ENGINE = ("model", "cache", "scheduler", "device", "speculation", "grammar")
_DEFAULT_WORKLOADS = ["w1", "w2", "w3", "w4", "w6"]
_TRAFFIC = ("sharegpt", "shared-prefix", "agent", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    for name, (help, add, _) in _KINDS.items():
        sub = kinds.add_parser(name, help=help, description=help, allow_abbrev=False)
        add(sub)
        output = sub.add_argument_group("Output")
        output.add_argument("--json", type=Path, metavar="FILE", help="write every figure, the options and the machine")
        output.add_argument("--compare", type=Path, metavar="FILE", help="show ratios to a run that --json has written")
        output.add_argument("--plot", type=Path, metavar="FILE", help="draw it (.svg or .png; needs sapwood[plot])")
        sub.add_argument("--repeat", type=options.count, default=1, metavar="N", help="runs of each; medians are shown")


def run(args: argparse.Namespace) -> int:
    from sapwood.bench import report as reports
    from sapwood.cli.terminal import console

    earlier = _check_output(args)
    hidden = {"command", "key", "json", "compare", "plot"}
    said = {name: value for name, value in vars(args).items() if name not in hidden and not name.startswith("option_")}
    plain = {name: str(v) if isinstance(v, Path) or v == math.inf else v for name, v in said.items() if v is not None}
    report = reports.new_report(plain)
    for row in _KINDS[args.bench][2](args, report):
        report.rows.append(row)
        style = "dim" if row.error is None else "red"
        console(stderr=True).print(reports.line(row), style=style, markup=False)
        if args.json is not None:
            reports.save(report, args.json)
    _show(args, report, earlier)
    return int(any(row.error is not None or row.errors for row in report.rows))


def _add(
    parser: argparse._ActionsContainer, flag: str, default: Any, help: str, read: Any = options.count, **more: Any
) -> None:
    """A number's flag, whose help says the default."""
    shown = " ".join(map(str, default)) if isinstance(default, list) else f"{default:g}"
    help = f"{help} (default: {shown})" if default != math.inf else help
    parser.add_argument(flag, type=read, default=default, metavar=more.pop("metavar", "N"), help=help, **more)


# -- an engine in this process ------------------------------------------------------------------------------------------


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    names = "w1 uniform, w2 general, w3 shared, w4 agent, w5 decode, w6 prefill, w8 structured"
    _add(parser, "--workloads", _DEFAULT_WORKLOADS, names, str, nargs="+", metavar="NAME")
    _add(parser, "--scale", 1.0, "serve about this share of each workload's tokens", options.share, metavar="S")
    _add(parser, "--max-seconds", math.inf, "cut each measurement off after this time", options.positive, metavar="S")
    add_flags(parser, _ENGINE)


def _throughput(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench.workloads import find_all

    specs = find_all(args.workloads)
    longest = max(spec.make(args.scale).longest for spec in specs)
    load = {} if args.scale == 1 else {"scale": args.scale}
    return _offline(args, report, longest, specs, scale=args.scale, load=load)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--batch", [1, 32, 256], "sequences at once", nargs="+")
    _add(parser, "--input-len", 128, "prompt tokens of each")
    _add(parser, "--output-len", 256, "new tokens of each")
    _add(parser, "--max-seconds", math.inf, "cut each measurement off after this time", options.positive, metavar="S")
    add_flags(parser, _ENGINE)


def _latency(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench.workloads import decode

    specs = [decode(batch, args.input_len, args.output_len) for batch in args.batch]
    load = {"input": args.input_len, "output": args.output_len}
    return _offline(args, report, args.input_len + args.output_len, specs, load=load)


def _offline(
    args: argparse.Namespace, report: Report, longest: int, specs: Sequence[WorkloadSpec], **how: Any
) -> Iterator[Row]:
    """Measure an engine made as the command line says; its facts are noted in the report."""
    from sapwood.bench import offline
    from sapwood.bench.report import machine, versions
    from sapwood.bench.target import measure
    from sapwood.cli.terminal import bring

    asked = given(args)
    asked.pop("api_key", None)
    if not offline.shape_options(asked.get("model", "")):
        bring(from_options(asked))
    opened = offline.open_engine(asked, longest=longest)
    report.config |= {"engine": asked, "decisions": opened.facts.decisions}
    report.machine, report.versions = machine(), versions()  # torch is there now, and knows the GPU
    try:
        yield opened.row()
        yield from measure(offline.Offline(opened, repeat=args.repeat, max_seconds=args.max_seconds, **how), specs)
    finally:
        opened.engine.executor.shutdown()


# -- a server -----------------------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("Server")
    where.add_argument("--url", metavar="URL", help="an OpenAI-compatible server that runs already")
    where.add_argument("--spawn", metavar="MODEL", help="start `sapwood serve MODEL` (or a shape's name) for this run")
    where.add_argument("--engine", nargs="+", default=[], metavar="NAME=VALUE", help="options of the server of --spawn")
    where.add_argument("--model", metavar="NAME", help="the model's name in requests (default: the server's first)")
    where.add_argument("--api-key", dest="key", metavar="KEY", help="the server's key (or set SAPWOOD_API_KEY)")
    load = parser.add_argument_group("Load")
    load.add_argument("--rate", metavar="R", help="open loop: sessions a second, or inf for all at once")
    _add(load, "--burstiness", 1.0, "1: Poisson; below: in bursts", options.positive, metavar="B")
    load.add_argument(
        "--concurrency", type=options.count, metavar="N", help="closed loop: sessions at once (default: 32)"
    )
    load.add_argument("--sweep", metavar="A,B,C", help="several loads, one after the other, of --loop")
    load.add_argument("--loop", choices=("open", "closed"), help="what --sweep counts (default: closed)")
    load.add_argument(
        "--num-requests", type=options.count, metavar="N", help="sessions of each load (default: from the load)"
    )
    _add(load, "--max-seconds", math.inf, "then send no more", options.positive, metavar="S")
    _add(load, "--warm-up", 4, "sessions before that are not measured", int)
    _add(load, "--timeout", 600.0, "of a request", options.positive, metavar="S")
    _add(load, "--seed", 0, "of prompts and arrivals", int)
    load.add_argument("--slo", metavar="NAME=MS,...", help="goodput counts requests within these, as ttft=500,tpot=50")
    what = parser.add_argument_group("Traffic")
    what.add_argument("--traffic", choices=_TRAFFIC, default="sharegpt", help="(default: sharegpt)")
    _add(what, "--input-len", 128, "own tokens")
    _add(what, "--output-len", 128, "new tokens")
    _add(what, "--length-spread", 0.0, "of random: lengths vary by this share", options.fraction, metavar="S")
    _add(what, "--prefix-len", 2048, "shared tokens")
    _add(what, "--groups", 32, "prefixes of shared-prefix")
    _add(what, "--turns", 8, "of an agent's session")
    what.add_argument("--as-text", action="store_true", help="random words, for servers that take no token ids")
    _add(what, "--vocab-size", 10_000, "ids are below this")
    _add(what, "--temperature", 0.0, "of each request", float, metavar="T")
    what.add_argument("--no-ignore-eos", action="store_true", help="let answers end where the model ends them")
    what.add_argument("--extra-body", metavar="JSON", help="further fields of each request")


def _serve(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench import load, spawn
    from sapwood.bench.traffic import Traffic
    from sapwood.cli.remote import Remote

    if (args.url is None) == (args.spawn is None):
        raise UserError("give either --url, of a server that runs, or --spawn, a model to serve.")
    if args.engine and args.spawn is None:
        raise UserError("--engine is for the server that --spawn starts.")
    flags = options.engine_flags(options.engine_options(args.engine))
    slo, extra, loads = options.bounds(args.slo), options.json_object(args.extra_body, "--extra-body"), _loads(args)
    lengths = {name: getattr(args, name) for name in ("input_len", "output_len", "prefix_len", "groups", "turns")}
    traffic = Traffic(
        args.traffic, **lengths, spread=args.length_spread, as_text=args.as_text, vocab_size=args.vocab_size
    )
    key = args.key or env.api_key()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(spawn.serving(args.spawn, flags)).url if args.spawn else args.url
        model, eos = args.model or Remote(url, api_key=key).model(), args.no_ignore_eos
        server = load.Server(url, model, key, args.temperature, not eos, extra, args.timeout)
        yield from load.measure(server, traffic, loads, slo=slo, num_warm=args.warm_up, repeat=args.repeat)


def _loads(args: argparse.Namespace) -> list[Load]:
    """What the options of a load say: one, or those of a sweep."""
    from sapwood.bench.load import Load

    ways = {"--rate": args.rate, "--concurrency": args.concurrency, "--sweep": args.sweep}
    asked = {flag: str(way) for flag, way in ways.items() if way is not None} or {"--concurrency": "32"}
    if len(asked) > 1:
        raise UserError("give one of --rate (an open loop), --concurrency (a closed one) and --sweep (of --loop).")
    ((flag, text),) = asked.items()
    if flag != "--sweep" and args.loop is not None:
        raise UserError("--loop says what --sweep counts; without it give --rate or --concurrency.")
    loop: Literal["open", "closed"] = args.loop or ("open" if flag == "--rate" else "closed")
    parts = text.split(",") if flag == "--sweep" else [text]
    levels = [options.level(part, flag, endless=flag == "--rate") for part in parts]
    if loop == "closed" and any(level != int(level) for level in levels):
        raise UserError("--sweep of a closed loop takes whole numbers.")
    numbers = [args.num_requests or (1000 if math.isinf(level) else max(64, round(8 * level))) for level in levels]
    load = partial(Load, loop, burstiness=args.burstiness, max_seconds=args.max_seconds, seed=args.seed)
    return list(map(load, levels, numbers))


# -- the host -----------------------------------------------------------------------------------------------------------


def _add_host(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--sequences", [32, 256, 4096], "running", nargs="+")
    _add(parser, "--steps", 300, "measured")
    _add(parser, "--input-len", 128, "mean prompt tokens")
    _add(parser, "--prefix-len", 0, "shared tokens before", options.natural)
    _add(parser, "--page-size", 16, "tokens of a KV page")
    _add(parser, "--overlap-depth", 1, "steps in flight", options.natural)


def _host(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench.host import Host
    from sapwood.bench.target import measure

    if problem := page_size_problem(args.page_size):
        raise UserError(f"--page-size {problem}.")
    host = Host(args.steps, args.input_len, args.prefix_len, args.page_size, args.overlap_depth, args.repeat)
    return measure(host, args.sequences)


_Measure = Callable[[argparse.Namespace, "Report"], Iterator["Row"]]
_KINDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], _Measure]] = {
    "throughput": ("serve whole workloads in this process", _add_throughput, _throughput),
    "latency": ("time decode steps of fixed batches in this process", _add_latency, _latency),
    "serve": ("send load to an OpenAI-compatible server", _add_serve, _serve),
    "host": ("time the scheduler and the loop, with no device behind them", _add_host, _host),
}


# -- output -------------------------------------------------------------------------------------------------------------


def _check_output(args: argparse.Namespace) -> Report | None:
    """See before anything is measured that it can be kept; return the run to compare with."""
    from sapwood.bench import plot, report

    for flag, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{flag} {path}: there is no directory {path.parent}.")
    if args.plot is not None:
        plot.check(args.plot)
    return report.load(args.compare) if args.compare is not None else None


def _show(args: argparse.Namespace, report: Report, earlier: Report | None) -> None:
    from sapwood.bench import plot
    from sapwood.bench import report as reports
    from sapwood.cli.terminal import console, print_tables

    out, shown = console(), reports.tables(report.rows)
    served = [row for row in report.rows if row.kind == "serve"]
    if len(served) == 1:
        shown.append(reports.spreads(served[0]))
    changes = reports.compare(earlier, report) if earlier is not None else []
    if changes:
        shown.append(reports.change_table(changes))
    print_tables(out, shown)
    for row in report.rows:
        for note in row.notes:
            out.print(f"{row.title}: {note}", markup=False)
    if args.plot is not None:
        plot.draw(report.rows, args.plot)
    if earlier is not None and not changes:
        raise UserError(f"--compare {args.compare} has no measurement of the same name, model and load.")
    for row in report.rows:
        kinds = ", ".join(f"{number} {kind}" for kind, number in row.errors.items())
        if row.error is not None:
            print(f"sapwood: {row.title} failed: {row.error}", file=sys.stderr)
        elif kinds:
            print(f"sapwood: {row.title}: {sum(row.errors.values())} requests failed ({kinds}).", file=sys.stderr)
