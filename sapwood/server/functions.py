"""Functions as requests declare them, whatever the API: what is checked of each, and which of them may be called."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.body import field_error
from sapwood.server.calling import Toolbox
from sapwood.text.parsers.rules import NOTHING, OfferedTool

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class Declared(NamedTuple):
    """A function, and the fields of the body that hold its name and its schema."""

    name: str
    schema: dict[str, Any] | None
    strict: bool
    name_at: str
    schema_at: str


class Choice(NamedTuple):
    """Which may be called: `names`, None for all; whether one `must` be; `never` for none, though the tools are known."""

    names: Sequence[str] | None = None
    must: bool = False
    never: bool = False


class _Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: _Function | None = None


def declared(raw: dict[str, Any], where: str) -> Declared:
    """A tool as OpenAI declares it, and others after it. Raises RequestError naming the field."""
    try:
        tool = msgspec.convert(raw, _Tool)
    except msgspec.ValidationError as error:
        raise field_error(error, within=where) from None
    if tool.type != "function":
        raise RequestError(f"{where}.type must be function, got {tool.type!r}.", param=f"{where}.type")
    if tool.function is None:
        raise RequestError(f"{where}.function is missing.", param=f"{where}.function")
    at = f"{where}.function"
    return Declared(
        tool.function.name, tool.function.parameters, bool(tool.function.strict), f"{at}.name", f"{at}.parameters"
    )


def toolbox_of(
    told: list[dict[str, Any]], functions: Sequence[Declared], choice: Choice, *, many: bool, reads: bool
) -> Toolbox | None:
    """The tools of a request, None without any or where none may be called. Raises RequestError naming the field.

    `told` are the tools as templates print them; `many` may be called at once; `reads`: this server reads calls.
    """
    if not functions:
        if choice.must or choice.names:
            raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        return None
    offers = _offers(functions)
    if choice.never:
        return None
    if unknown := [name for name in choice.names or () if name not in offers]:
        raise RequestError(f"tool_choice names {unknown[0]!r}, which is not among the tools.", param="tool_choice")
    if choice.must and not reads:
        raise RequestError("tool_choice: this server reads no calls (--tool-parser none).", param="tool_choice")
    kept = [one for one in functions if choice.names is None or one.name in choice.names] if reads else []
    one_must = choice.must and choice.names is not None and len(choice.names) == 1
    return Toolbox(
        told=told,
        offers=tuple(offers[one.name] for one in kept),
        places=tuple(one.schema_at for one in kept),
        must=choice.must,
        many=many and not one_must,
    )


def arguments_of(written: str) -> dict[str, Any]:
    """A call's arguments as an object; nothing of what is none, since no part of it is sure."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _offers(functions: Sequence[Declared]) -> dict[str, OfferedTool]:
    offers: dict[str, OfferedTool] = {}
    for name, given, strict, name_at, schema_at in functions:
        if not _NAME.fullmatch(name):
            raise RequestError(f"{name_at} must be 1 to 128 letters, digits, _ . or -, got {name!r}.", param=name_at)
        if name in offers:
            raise RequestError(f"{name_at}: there are two tools named {name!r}.", param=name_at)
        schema = given or NOTHING
        if schema.get("type", "object") != "object":
            raise RequestError(f"{schema_at} must be the schema of an object.", param=schema_at)
        offers[name] = OfferedTool(name=name, schema={"type": "object", **schema}, strict=strict)
    return offers
