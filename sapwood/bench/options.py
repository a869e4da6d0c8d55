"""Text of the command line as values. Everything raises UserError, naming the option."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sapwood.base.errors import UserError
from sapwood.config.flags import from_options

SLO_NAMES = ("ttft", "tpot", "e2e")


def engine_options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs of --engine as options of `from_options`, which has seen that they are right."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.removeprefix("--").partition("=")
        if not equals:
            raise UserError(f"--engine takes NAME=VALUE, such as max_num_seqs=512; got {pair!r}.")
        options[name.replace("-", "_")] = value
    from_options(options)
    return options


def engine_flags(options: dict[str, Any]) -> list[str]:
    """The same as words of a command line."""
    from sapwood.config.flags import flag_of
    from sapwood.config.flags import options as known

    kinds = {name: option.kind for option in known() for name in option.names}
    words = []
    for name, value in options.items():
        flag = flag_of(name)
        if kinds[name] is bool:
            words.append(flag if value == "true" else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, value]
    return words


def levels(text: str) -> list[float]:
    """'1,2,4' of --sweep as numbers above 0, ascending or not."""
    return [positive(part, "--sweep") for part in text.split(",")]


def positive(text: str, flag: str, *, endless: bool = False) -> float:
    """A number above 0; with `endless`, 'inf' is one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or (math.isinf(value) and not endless):
        raise UserError(f"{flag} takes numbers above 0, got {text!r}.")
    return value


def bounds(text: str | None) -> dict[str, float]:
    """'ttft=500,tpot=50' of --slo as milliseconds by name."""
    found: dict[str, float] = {}
    for pair in text.split(",") if text else ():
        name, _, value = pair.partition("=")
        if name not in SLO_NAMES:
            raise UserError(f"--slo bounds {', '.join(SLO_NAMES)}, as in ttft=500,tpot=50; got {pair!r}.")
        found[name] = positive(value, "--slo")
    return found


def json_object(text: str | None, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise UserError(f"{flag} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{flag} takes a JSON object, got {text}.")
    return value
