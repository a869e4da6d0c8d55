"""`sapwood apply`: merge a snippet with marks for what stays into a file, by its lines alone or by a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sapwood.base.errors import UserError
from sapwood.cli.terminal import bring
from sapwood.config import env
from sapwood.config.flags import add_flags, from_args, given

HELP = "merge a snippet with '... existing code ...' marks into a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the file to be changed")
    parser.add_argument("update", metavar="UPDATE", help="the file that holds the snippet, or - for stdin")
    parser.add_argument("--instruction", metavar="TEXT", default="", help="what the change is about, for the model")
    parser.add_argument("--write", action="store_true", help="write FILE, instead of printing what it would become")
    parser.add_argument("--url", metavar="URL", help="have the server there merge what lines alone do not tell")
    parser.add_argument("--api-key", dest="key", metavar="KEY", help="the server's key (or set SAPWOOD_API_KEY)")
    add_flags(parser, ("model", "cache", "scheduler", "device", "speculation"), positional=False)


def run(args: argparse.Namespace) -> int:
    from sapwood.apply import Edit, Unclear, by_anchors, check

    edit = Edit(args.instruction, _read(args.file), _read_update(args.update))
    try:
        merged = by_anchors(edit)
    except Unclear as error:
        merged = _by_model(args, edit, str(error))
    problems = check(edit.code, edit.update, merged)
    for problem in problems:
        print(f"sapwood: line {problem.line} is {problem.kind}: {problem.text}", file=sys.stderr)
    if problems and args.write:
        print(f"sapwood: {args.file} is left as it is", file=sys.stderr)
    elif args.write:
        _write(args.file, merged)
    else:
        sys.stdout.write(merged)
    return 1 if problems else 0


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends stay as they are
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _read_update(name: str) -> str:
    if name != "-":
        return _read(Path(name))
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the update on stdin is not UTF-8: {error}.") from error


def _write(path: Path, text: str) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error


def _by_model(args: argparse.Namespace, edit: Any, why: str) -> str:
    """What a server or a model beside this process makes of it."""
    if args.url:
        from sapwood.cli.remote import Remote

        remote = Remote(args.url, api_key=args.key or env.api_key())
        body = {"code": edit.code, "update": edit.update, "instruction": edit.instruction, "method": "model"}
        code: str = remote.post("/v1/apply", body)["code"]
        return code
    if "model" not in given(args):
        raise UserError(f"lines alone do not tell how to merge: {why}. Give --model, or --url of a server.")
    bring(from_args(args))
    return _merged(given(args), edit)


def _merged(options: dict[str, Any], edit: Any) -> str:
    from sapwood.apply import CLOSING, answered, conversation, template_of
    from sapwood.base.sampling import SamplingParams
    from sapwood.llm import LLM

    llm = LLM(**options)
    template = template_of(llm.config.model.apply_template, llm.config.model.model)
    prediction = tuple(llm.text.encode(edit.code, add_special=False))
    params = SamplingParams(temperature=0, stop=(CLOSING,), prediction=prediction)
    (generation,) = llm.chat([conversation(edit, template)], params, continue_final_message=True)
    output = generation.outputs[0]
    if output.error is not None:
        raise UserError(f"the model did not merge it: {output.error}")
    return answered(output.text, edit.code)
