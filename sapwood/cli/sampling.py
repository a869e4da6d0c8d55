"""The sampling flags of `chat` and `run`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapwood.base.errors import RequestError, UserError
from sapwood.base.sampling import SamplingParams

_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("max_tokens", int, "most tokens of an answer"),
    ("min_tokens", int, "fewest tokens of an answer"),
    ("temperature", float, "0 always takes the likeliest token"),
    ("top_k", int, "choose among the k likeliest tokens"),
    ("top_p", float, "choose among the likeliest tokens that together reach this probability"),
    ("min_p", float, "drop tokens less likely than this share of the likeliest"),
    ("repetition_penalty", float, "above 1, tokens that were there already become less likely"),
)
_ALIASES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Sampling")
    for name, kind, help in _FLAGS:
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(), help=help)
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="answer with a JSON object")
    shape.add_argument(
        "--json-schema", metavar="SCHEMA", help="answer with JSON that matches: a file or the schema itself"
    )
    shape.add_argument("--regex", metavar="PATTERN", help="answer with what matches as a whole")
    shape.add_argument("--choice", action="append", metavar="TEXT", help="answer with one of these (repeatable)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text (repeatable)")


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What the user set, as fields of SamplingParams."""
    fields = {name: getattr(args, name) for name, _, _ in _FLAGS} | {"stop": args.stop}
    fields["structured_outputs"] = _structured(args)
    return {name: value for name, value in fields.items() if value is not None}


def _structured(args: argparse.Namespace) -> dict[str, Any] | None:
    """What an answer has to match, as vLLM spells it and servers take it."""
    if args.json:
        return {"json_object": True}
    if args.json_schema is not None:
        return {"json": _schema(args.json_schema)}
    if args.regex is not None:
        return {"regex": args.regex}
    return None if args.choice is None else {"choice": args.choice}


def _schema(given: str) -> Any:
    """A schema from a file, or from the text itself where that begins like one."""
    text = given
    if not given.lstrip().startswith("{"):
        try:
            text = Path(given).read_text("utf-8")
        except OSError as error:
            raise UserError(f"--json-schema {given}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--json-schema {given}: it is not UTF-8: {error}.") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"--json-schema {given}: it is not JSON: {error}.") from error


def params_of(fields: Mapping[str, Any], **defaults: Any) -> SamplingParams:
    """SamplingParams from JSON-like fields over `defaults`; RequestError for unknown names and wrong types."""
    import msgspec

    from sapwood.grammar.spellings import Structured

    if any(name in fields for name in Structured.__struct_fields__):
        defaults = {name: value for name, value in defaults.items() if name not in Structured.__struct_fields__}
    values = defaults | {_ALIASES.get(name, name): value for name, value in fields.items()}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    structured = {name: value for name in Structured.__struct_fields__ if (value := values.pop(name, None)) is not None}
    if structured:
        try:
            asked = msgspec.convert(structured, Structured).asked()
        except msgspec.ValidationError as error:
            raise RequestError(f"{error}.") from error
        if asked is not None:
            values["grammar"] = msgspec.to_builtins(asked.grammar)
    try:
        return msgspec.convert(values, SamplingParams, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"{error}.") from error
