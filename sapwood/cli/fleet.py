"""`sapwood fleet`: servers of several models on a cluster, behind one router."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from sapwood.base.errors import UserError

HELP = "servers on a cluster of Ray, behind one router: up, status, drain, logs, down"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = actions.add_parser(
        "up", help="have the fleet be as a table says; begins a cluster of this machine where there is none"
    )
    up.add_argument("file", type=Path, metavar="FILE", help="the table (a .toml file)")
    up.add_argument("--check", action="store_true", help="read the table, and do nothing")
    actions.add_parser("status", help="what there is, where, and what it has to do").add_argument(
        "--json", action="store_true", help="as JSON"
    )
    drain = actions.add_parser("drain", help="have servers end when they have answered; others take their place")
    logs = actions.add_parser("logs", help="what servers have said lately, those that have gone included")
    logs.add_argument("-n", "--lines", type=int, default=100, help="of each (default: %(default)s)")
    for one in (drain, logs):
        one.add_argument("who", metavar="SERVER|MODEL", help="a server as `status` calls it, or all of a model")
    actions.add_parser("down", help="end the fleet")
    for name, one in actions.choices.items():
        one.add_argument(
            "--address", metavar="ADDRESS", help="the cluster (default: the one that runs here, or RAY_ADDRESS)"
        )
        if name != "up":
            one.add_argument("--name", default="sapwood", help="of the fleet (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args)


def _rays() -> ModuleType:
    try:
        from sapwood.fleet import rays
    except ImportError as error:
        raise UserError("`sapwood fleet` needs Ray and aiohttp: pip install 'sapwood[ray]'.") from error
    return rays


def _up(args: argparse.Namespace) -> int:
    from sapwood.fleet.ingress import options
    from sapwood.fleet.plan import read

    plan = read(args.file)
    options(plan)
    if args.check:
        print(f"{args.file}: {', '.join(plan.engine)}")
        return 0
    rays = _rays()
    begun = rays.connect(plan, args.address, begin=True)
    over = threading.Event()
    if begun:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
    print(f"sapwood fleet: {rays.up(plan)}", flush=True)
    if begun:
        print("the cluster of this machine lasts for as long as this command; Ctrl-C ends it", flush=True)
        over.wait()
        rays.down(plan.name)
    return 0


def _status(args: argparse.Namespace) -> int:
    import json

    from sapwood.cli.terminal import console, print_rows

    rays = _rays()
    rays.connect(None, args.address, begin=False)
    told = rays.told(args.name)
    if args.json:
        print(json.dumps(told._asdict()))
        return 0
    out = console()
    out.print(f"{args.name}: {told.status} {told.message}".rstrip(), markup=False)
    out.print(f"at {', '.join(told.register['routers']) or 'no address yet'}", markup=False)
    parts = [(name, status, str(count), message) for name, (status, count, message) in told.parts.items()]
    print_rows(out, parts, header=("part", "state", "running", ""))
    servers = [
        (one["model"], one["name"], one["state"], f"{one['running']:.0f}", f"{one['waiting']:.0f}", f"{one['tokens']:.0f}", one["url"])
        for one in told.register["servers"]
    ]  # fmt: skip
    if servers:
        print_rows(out, servers, header=("model", "server", "state", "running", "waiting", "tokens", "url"))
    for model, count in told.register["queued"].items():
        if count:
            out.print(f"{count} requests wait for {model}", markup=False)
    return 0


def _drain(args: argparse.Namespace) -> int:
    rays = _rays()
    rays.connect(None, args.address, begin=False)
    for name in rays.drain(args.name, args.who):
        print(f"{name} gets nothing new")
    return 0


def _logs(args: argparse.Namespace) -> int:
    rays = _rays()
    rays.connect(None, args.address, begin=False)
    for name, lines in rays.logs(args.name, args.who, args.lines).items():
        print(f"== {name}")
        for line in lines:
            print(line)
    return 0


def _down(args: argparse.Namespace) -> int:
    rays = _rays()
    rays.connect(None, args.address, begin=False)
    rays.down(args.name)
    return 0


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "status": _status,
    "drain": _drain,
    "logs": _logs,
    "down": _down,
}
