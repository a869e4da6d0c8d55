"""The sampling flags of `chat` and `run`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sapwood.base.errors import RequestError
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
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text (repeatable)")


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What the user set, as fields of SamplingParams."""
    fields = {name: getattr(args, name) for name, _, _ in _FLAGS} | {"stop": args.stop}
    return {name: value for name, value in fields.items() if value is not None}


def params_of(fields: Mapping[str, Any], **defaults: Any) -> SamplingParams:
    """SamplingParams from JSON-like fields over `defaults`; RequestError for unknown names and wrong types."""
    import msgspec

    values = defaults | {_ALIASES.get(name, name): value for name, value in fields.items()}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    try:
        return msgspec.convert(values, SamplingParams, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"{error}.") from error
