"""`sapwood top`: a running server in the terminal, looked at once a second."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import sys
from collections.abc import Callable, Iterator
from time import sleep
from typing import TYPE_CHECKING

from sapwood.base.errors import UserError
from sapwood.config import env

if TYPE_CHECKING:
    from sapwood.cli.looks import Looks

HELP = "watch a running server in the terminal"

_KEYS_OF_END = ("q", "Q", "\x1b", "\x03")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8000", metavar="URL", help="the server (default: %(default)s)"
    )
    parser.add_argument("--api-key", dest="key", metavar="KEY", help="the server's key (or set SAPWOOD_API_KEY)")
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="look twice, print one frame, and end")
    parser.add_argument("--json", action="store_true", help="print figures and requests as JSON, a line for each look")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be between 0.05 and 3600 seconds, got {text}")
    return value


def run(args: argparse.Namespace) -> int:
    from sapwood.cli.looks import Looks, look
    from sapwood.cli.remote import Remote

    remote = Remote(args.url, api_key=args.key or env.api_key())
    looks = Looks(look(remote))
    if args.once or args.json:
        while True:
            sleep(args.interval)
            looks.add(look(remote))
            _print(looks, remote.url, as_json=args.json)
            if args.once:
                return 0
    if not sys.stdout.isatty():
        raise UserError("this is no terminal: `sapwood top --once` prints one frame, `--json` a line for each look.")
    _watch(looks, lambda: looks.add(look(remote)), interval=args.interval, url=remote.url)
    return 0


def _print(looks: Looks, url: str, *, as_json: bool) -> None:
    from sapwood.cli.frames import frame
    from sapwood.cli.terminal import console

    if as_json:
        print(json.dumps(looks.told()), flush=True)
    else:
        console().print(frame(looks, most_lanes=64, url=url))


def _watch(looks: Looks, again: Callable[[], None], *, interval: float, url: str) -> None:
    """Until somebody presses q. A server that does not answer now is shown as it was, with why."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from sapwood.base.errors import SapwoodError
    from sapwood.cli.frames import frame, lines_beside_lanes
    from sapwood.cli.terminal import console

    out, trouble = console(), ""
    with _keys() as pressed, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            foot = Text(trouble, "bold red") if trouble else Text("q quits", "dim")
            most = max(out.height - lines_beside_lanes(out.width), 3)
            live.update(Group(frame(looks, most_lanes=most, url=url), foot), refresh=True)
            if pressed(interval) in _KEYS_OF_END:
                return
            try:
                again()
                trouble = ""
            except SapwoodError as error:
                trouble = str(error)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key, and returns it, or "" if none was pressed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield lambda seconds: sleep(seconds) or ""  # type: ignore[func-returns-value]
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda seconds: sys.stdin.read(1) if select.select([descriptor], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
