"""The command `sapwood`: one module per subcommand, each with `HELP`, `add_arguments` and `run`.

They import what is heavy inside `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from sapwood import __version__
from sapwood.base.errors import SapwoodError, UserError
from sapwood.config import env


class _Commands(Mapping[str, Any]):
    """Modules by the names of their commands, imported when they are asked for."""

    _names = (
        "serve",
        "chat",
        "run",
        "transcribe",
        "bench",
        "pull",
        "explain",
        "doctor",
        "top",
        "apply",
        "quantize",
        "route",
        "route-eval",
        "fleet",
        "cache",
    )

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return importlib.import_module(f"sapwood.cli.{name.replace('-', '_')}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


COMMANDS = _Commands()

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (failed), 2 (the user can mend it) or 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[:1]).parse_args(argv)
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


def _parser(first: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Of the command that the first word names, or else of all: each brings its own flags."""
    parser = _Parser(prog="sapwood", description="Serve and run language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sapwood {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in [word for word in first if word in COMMANDS] or COMMANDS:
        module = COMMANDS[name]
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(sub)
    return parser
