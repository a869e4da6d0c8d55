"""The command `sapwood`: one module per subcommand, each with `HELP`, `add_arguments` and `run`.

They import what is heavy inside `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from sapwood import __version__
from sapwood.base.errors import SapwoodError, UserError
from sapwood.cli import bench, chat, doctor, explain, pull, run, serve
from sapwood.config import env

COMMANDS = {
    "serve": serve,
    "chat": chat,
    "run": run,
    "bench": bench,
    "pull": pull,
    "explain": explain,
    "doctor": doctor,
}

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (failed), 2 (the user can mend it) or 130 (Ctrl-C)."""
    args = _parser().parse_args(argv)
    try:
        code: int = COMMANDS[args.command].run(args)
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; the interpreter would complain once more
        return _FAILED
    except SapwoodError as error:
        if env.debug() or getattr(args, "option_log_level", None) == "debug":
            traceback.print_exc()
        print(f"sapwood: error: {error}", file=sys.stderr)
        return _MISUSED if isinstance(error, UserError) else _FAILED


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest flag for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        _, _, unknown = message.partition("unrecognized arguments: ")
        near = difflib.get_close_matches(unknown.partition(" ")[0].partition("=")[0], known, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else f"; see `{self.prog} --help`"
        self.exit(_MISUSED, f"sapwood: error: {message}{hint}\n")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """A subcommand refuses what it does not know itself, where its own flags can be suggested."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return namespace, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sapwood", description="Serve and run language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sapwood {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(sub)
    return parser
