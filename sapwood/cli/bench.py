"""`sapwood bench`: how fast it is. Offline in this process, over HTTP against any server, or the host alone."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sapwood.base.errors import UserError
from sapwood.config import env
from sapwood.config.flags import add_flags, from_options, given

if TYPE_CHECKING:
    from sapwood.bench.load import Load
    from sapwood.bench.report import Report, Row, Table

HELP = "measure throughput, latency, a server under load, or the host alone"

_ENGINE = ("model", "cache", "scheduler", "device", "grammar")
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
        sub.add_argument("--repeat", type=_count, default=1, metavar="N", help="runs of each; medians are shown")


def run(args: argparse.Namespace) -> int:
    _, _, measure = _KINDS[args.bench]
    earlier = _check_output(args)
    report: Report = _new_report(args)
    try:
        for row in measure(args, report):
            report.rows.append(row)
            _say(row)
            _save(args, report)
    finally:
        _save(args, report)
    return _show(args, report, earlier)


# -- throughput and latency ---------------------------------------------------------------------------------------------


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workloads",
        nargs="+",
        default=_DEFAULT_WORKLOADS,
        metavar="NAME",
        help="w1 uniform, w2 general, w3 shared, w4 agent, w5 decode, w6 prefill, w8 structured "
        f"(default: {' '.join(_DEFAULT_WORKLOADS)})",
    )
    parser.add_argument(
        "--scale", type=_share, default=1.0, metavar="S", help="serve about this share of each workload's tokens"
    )
    _add_limit(parser)
    add_flags(parser, _ENGINE)


def _throughput(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench import offline, workloads

    units = workloads.find_all(args.workloads)
    settings = offline.Settings(scale=args.scale, repeat=args.repeat, max_seconds=args.max_seconds)
    longest = max(unit.make(args.scale).longest for unit in units)
    with _engine(args, report, longest) as opened:
        yield opened.row()
        yield from offline.throughput(opened, units, settings)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        nargs="+",
        type=_count,
        default=[1, 32, 256],
        metavar="N",
        help="sequences at once (default: 1 32 256)",
    )
    parser.add_argument(
        "--input-len", type=_count, default=128, metavar="N", help="prompt tokens of each (default: 128)"
    )
    parser.add_argument("--output-len", type=_count, default=256, metavar="N", help="new tokens of each (default: 256)")
    _add_limit(parser)
    add_flags(parser, _ENGINE)


def _latency(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench import offline, workloads

    some = [workloads.decode(batch, args.input_len, args.output_len) for batch in args.batch]
    settings = offline.Settings(repeat=args.repeat, max_seconds=args.max_seconds)
    with _engine(args, report, args.input_len + args.output_len) as opened:
        yield opened.row()
        yield from offline.latency(opened, some, settings)


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-seconds", type=_positive, default=math.inf, metavar="S", help="cut each measurement off after this time"
    )


@contextlib.contextmanager
def _engine(args: argparse.Namespace, report: Report, longest: int) -> Iterator[Any]:
    """An engine made as the command line says, whose facts are noted in the report."""
    from sapwood.bench import offline
    from sapwood.bench.report import machine, versions
    from sapwood.cli.terminal import bring

    options = given(args)
    options.pop("api_key", None)
    if not offline.shape_options(options.get("model", "")):
        bring(from_options(options))
    opened = offline.open_engine(options, longest=longest)
    report.config["engine"] = options
    report.config["decisions"] = opened.facts.decisions
    report.machine, report.versions = machine(), versions()  # torch is there now, and knows the GPU
    try:
        yield opened
    finally:
        opened.engine.executor.shutdown()


# -- serve --------------------------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("Server")
    where.add_argument("--url", metavar="URL", help="an OpenAI-compatible server that runs already")
    where.add_argument("--spawn", metavar="MODEL", help="start `sapwood serve MODEL` (or a shape's name) for this run")
    where.add_argument("--engine", nargs="+", default=[], metavar="NAME=VALUE", help="options of the server of --spawn")
    where.add_argument("--model", metavar="NAME", help="the model's name in requests (default: the server's first)")
    where.add_argument("--api-key", dest="key", metavar="KEY", help="the server's key (or set SAPWOOD_API_KEY)")
    load = parser.add_argument_group("Load")
    load.add_argument("--rate", metavar="R", help="open loop: sessions a second, or inf for all at once")
    load.add_argument("--burstiness", type=_positive, default=1.0, metavar="B", help="1: Poisson; below: in bursts")
    load.add_argument("--concurrency", type=_count, metavar="N", help="closed loop: sessions at once (default: 32)")
    load.add_argument("--sweep", metavar="A,B,C", help="several loads, one after the other, of --loop")
    load.add_argument("--loop", choices=("open", "closed"), help="what --sweep counts (default: closed)")
    load.add_argument("--num-requests", type=_count, metavar="N", help="sessions of each load (default: from the load)")
    load.add_argument("--max-seconds", type=_positive, default=math.inf, metavar="S", help="then send no more")
    load.add_argument("--warm-up", type=int, default=4, metavar="N", help="sessions before that are not measured")
    load.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="of a request (default: 600)")
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default: 0)")
    load.add_argument("--slo", metavar="NAME=MS,...", help="goodput counts requests within these, as ttft=500,tpot=50")
    what = parser.add_argument_group("Traffic")
    what.add_argument("--traffic", choices=_TRAFFIC, default="sharegpt", help="(default: sharegpt)")
    what.add_argument("--input-len", type=_count, default=128, metavar="N", help="own tokens (default: 128)")
    what.add_argument("--output-len", type=_count, default=128, metavar="N", help="new tokens (default: 128)")
    what.add_argument(
        "--length-spread", type=_fraction, default=0.0, metavar="S", help="of random: lengths vary by this share"
    )
    what.add_argument("--prefix-len", type=_count, default=2048, metavar="N", help="shared tokens (default: 2048)")
    what.add_argument("--groups", type=_count, default=32, metavar="N", help="prefixes of shared-prefix (default: 32)")
    what.add_argument("--turns", type=_count, default=8, metavar="N", help="of an agent's session (default: 8)")
    what.add_argument("--as-text", action="store_true", help="random words, for servers that take no token ids")
    what.add_argument(
        "--vocab-size", type=_count, default=10_000, metavar="N", help="ids are below this (default: 10000)"
    )
    what.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    what.add_argument("--no-ignore-eos", action="store_true", help="let answers end where the model ends them")
    what.add_argument("--extra-body", metavar="JSON", help="further fields of each request")


def _serve(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench import load, options, spawn
    from sapwood.bench.traffic import Traffic
    from sapwood.cli.remote import Remote

    if (args.url is None) == (args.spawn is None):
        raise UserError("give either --url, of a server that runs, or --spawn, a model to serve.")
    if args.engine and args.spawn is None:
        raise UserError("--engine is for the server that --spawn starts.")
    flags = options.engine_flags(options.engine_options(args.engine))
    slo, extra = options.bounds(args.slo), options.json_object(args.extra_body, "--extra-body")
    loads = _loads(args)
    traffic = Traffic(
        kind=args.traffic,
        input_len=args.input_len,
        output_len=args.output_len,
        prefix_len=args.prefix_len,
        groups=args.groups,
        turns=args.turns,
        spread=args.length_spread,
        as_text=args.as_text,
        vocab_size=args.vocab_size,
    )
    key = args.key or env.api_key()
    with spawn.serving(args.spawn, flags) if args.spawn else contextlib.nullcontext(args.url) as url:
        server = load.Server(
            url=url,
            model=args.model or Remote(url, api_key=key).model(),
            api_key=key,
            temperature=args.temperature,
            ignore_eos=not args.no_ignore_eos,
            extra=extra,
            timeout=args.timeout,
        )
        yield from load.measure(server, traffic, loads, slo=slo, num_warm=args.warm_up, repeat=args.repeat)


def _loads(args: argparse.Namespace) -> list[Load]:
    """What the options of a load say: one, or those of a sweep."""
    from sapwood.bench import options
    from sapwood.bench.load import Load

    if args.rate is not None and args.concurrency is not None:
        raise UserError("--rate is an open loop and --concurrency a closed one: give one of them.")
    if args.sweep is not None and (args.rate is not None or args.concurrency is not None):
        raise UserError("--sweep takes the place of --rate and --concurrency; --loop says which.")
    if args.sweep is None and args.loop is not None:
        raise UserError("--loop says what --sweep counts; without it give --rate or --concurrency.")
    loop: Literal["open", "closed"] = args.loop or ("closed" if args.rate is None else "open")
    if args.sweep is not None:
        levels = options.levels(args.sweep)
    elif args.rate is not None:
        levels = [options.positive(args.rate, "--rate", endless=True)]
    else:
        levels = [float(args.concurrency or 32)]
    if loop == "closed" and any(level != int(level) for level in levels):
        raise UserError("--sweep of a closed loop takes whole numbers.")
    return [
        Load(
            loop=loop,
            level=level,
            num_sessions=args.num_requests or (1000 if math.isinf(level) else max(64, round(8 * level))),
            burstiness=args.burstiness,
            max_seconds=args.max_seconds,
            seed=args.seed,
        )
        for level in levels
    ]


# -- host ---------------------------------------------------------------------------------------------------------------


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sequences",
        nargs="+",
        type=_count,
        default=[32, 256, 4096],
        metavar="N",
        help="running (default: 32 256 4096)",
    )
    parser.add_argument("--steps", type=_count, default=300, metavar="N", help="measured (default: 300)")
    parser.add_argument("--input-len", type=_count, default=128, metavar="N", help="mean prompt tokens (default: 128)")
    parser.add_argument("--prefix-len", type=_natural, default=0, metavar="N", help="shared tokens before (default: 0)")
    parser.add_argument("--page-size", type=_count, default=16, metavar="N", help="tokens of a KV page (default: 16)")
    parser.add_argument("--overlap-depth", type=_natural, default=1, metavar="N", help="steps in flight (default: 1)")


def _host(args: argparse.Namespace, report: Report) -> Iterator[Row]:
    from sapwood.bench import host

    if args.page_size & (args.page_size - 1):
        raise UserError(f"--page-size must be a power of two, got {args.page_size}.")
    settings = host.Settings(
        num_steps=args.steps,
        input_len=args.input_len,
        prefix_len=args.prefix_len,
        page_size=args.page_size,
        depth=args.overlap_depth,
        repeat=args.repeat,
    )
    yield from host.measure(args.sequences, settings)


_KINDS = {
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


def _new_report(args: argparse.Namespace) -> Report:
    from sapwood.bench.report import new_report

    hidden = {"command", "key", "json", "compare", "plot"}
    said = {name: value for name, value in vars(args).items() if name not in hidden and not name.startswith("option_")}
    plain = {name: str(v) if isinstance(v, Path) or v == math.inf else v for name, v in said.items() if v is not None}
    return new_report(plain)


def _save(args: argparse.Namespace, report: Report) -> None:
    from sapwood.bench.report import save

    if args.json is not None and report.rows:
        save(report, args.json)


def _say(row: Row) -> None:
    from sapwood.bench.report import line
    from sapwood.cli.terminal import console

    console(stderr=True).print(line(row), style="dim" if row.error is None else "red", markup=False)


def _show(args: argparse.Namespace, report: Report, earlier: Report | None) -> int:
    from sapwood.bench import plot
    from sapwood.bench import report as reports
    from sapwood.cli.terminal import console

    out = console()
    shown = reports.tables(report.rows)
    served = [row for row in report.rows if row.kind == "serve"]
    if len(served) == 1:
        shown.append(reports.spreads(served[0]))
    if earlier is not None:
        shown.append(reports.change_table(reports.compare(earlier, report)))
    print_tables(out, shown)
    for row in report.rows:
        for note in row.notes:
            out.print(f"{row.title}: {note}", markup=False)
    if args.plot is not None:
        plot.draw(report.rows, args.plot)
    if earlier is not None and not shown[-1].rows:
        raise UserError(f"--compare {args.compare} has no measurement of the same name, model and load.")
    return _complain(report.rows)


def print_tables(out: Any, tables: Iterable[Table]) -> None:
    """Tables with numbers to the right, an empty line between them."""
    from rich.table import Table as RichTable
    from rich.text import Text

    for index, (header, rows) in enumerate(tables):
        if index:
            out.print()
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column, title in enumerate(header):
            left = column == 0 or title in ("", "figure")
            table.add_column(title, justify="left" if left else "right", overflow="fold")
        for cells in rows:
            table.add_row(*map(Text, cells))
        out.print(table)


def _complain(rows: Iterable[Row]) -> int:
    """Say what failed; the exit code."""
    code = 0
    for row in rows:
        if row.error is not None:
            print(f"sapwood: {row.title} failed: {row.error}", file=sys.stderr)
            code = 1
        elif row.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in row.errors.items())
            print(f"sapwood: {row.title}: {sum(row.errors.values())} requests failed ({kinds}).", file=sys.stderr)
            code = 1
    return code


# -- numbers of the command line ------------------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"takes a whole number above 0, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a whole number, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"takes a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"takes a number above 0 and up to 1, got {text!r}")
    return value


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"takes a number from 0 to below 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
