"""Text of the command line as values. What a parser reads raises ArgumentTypeError, the rest UserError, naming the option."""

from __future__ import annotations

import json
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sapwood.base.errors import UserError
from sapwood.config.flags import flag_of, from_options
from sapwood.config.flags import options as known

SLO_NAMES = ("ttft", "tpot", "e2e")

N = TypeVar("N", int, float)


def number(read: Callable[[str], N], takes: str, good: Callable[[N], bool]) -> Callable[[str], N]:
    """A reader of numbers that are good; the others are refused, saying what it takes."""

    def parse(text: str) -> N:
        try:
            value = read(text)
        except ValueError:
            value = read("-1")
        if not good(value):
            raise ArgumentTypeError(f"takes {takes}, got {text!r}")
        return value

    return parse


count = number(int, "a whole number above 0", lambda value: value > 0)
natural = number(int, "a whole number", lambda value: value >= 0)
positive = number(float, "a number above 0", lambda value: value > 0)
share = number(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1)
fraction = number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)


def level(text: str, flag: str, *, endless: bool = False) -> float:
    """A number above 0; with `endless`, 'inf' is one."""
    try:
        value = positive(text)
    except ArgumentTypeError as error:
        raise UserError(f"{flag} {error}.") from None
    if math.isinf(value) and not endless:
        raise UserError(f"{flag} takes a number above 0 that ends, got {text!r}.")
    return value


def bounds(text: str | None) -> dict[str, float]:
    """'ttft=500,tpot=50' of --slo as milliseconds by name."""
    found: dict[str, float] = {}
    for pair in text.split(",") if text else ():
        name, _, value = pair.partition("=")
        if name not in SLO_NAMES:
            raise UserError(f"--slo bounds {', '.join(SLO_NAMES)}, as in ttft=500,tpot=50; got {pair!r}.")
        found[name] = level(value, "--slo")
    return found


def json_object(text: str | None, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise UserError(f"{flag} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{flag} takes a JSON object, got {text}.")
    return value


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
    switches = {name for option in known() if option.kind is bool for name in option.names}
    words = []
    for name, value in options.items():
        flag = flag_of(name)
        if name in switches:
            words.append(flag if value == "true" else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, value]
    return words
