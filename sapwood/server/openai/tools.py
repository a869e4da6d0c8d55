"""OpenAI's way to offer tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.body import field_error
from sapwood.server.calling import Toolbox
from sapwood.server.openai.protocol import ChatRequest
from sapwood.text.parsers.rules import NOTHING, OfferedTool

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: Function | None = None


class Name(msgspec.Struct, kw_only=True):
    name: str


class Chosen(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: Name | None = None


class Allowed(msgspec.Struct, kw_only=True):
    mode: str = "auto"
    tools: list[Chosen] = []


class ToolChoice(msgspec.Struct, kw_only=True):
    """`tool_choice` as an object: one function, or some that are allowed."""

    type: str = "function"
    function: Name | None = None
    allowed_tools: Allowed | None = None


def toolbox_of(body: ChatRequest, *, reads: bool) -> Toolbox | None:
    """A request's tools, None without any. `reads`: this server reads calls. Raises RequestError naming the field."""
    names, must = _choice(body.tool_choice)
    if not body.tools:
        if must or names:
            raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        return None
    offers = _offers(body.tools)
    if body.tool_choice == "none":
        return None
    if unknown := [name for name in names or () if name not in offers]:
        raise RequestError(f"tool_choice names {unknown[0]!r}, which is not among the tools.", param="tool_choice")
    if must and not reads:
        raise RequestError("tool_choice: this server reads no calls (--tool-parser none).", param="tool_choice")
    kept = {name: offer for name, offer in offers.items() if names is None or name in names} if reads else {}
    places = tuple(f"tools[{list(offers).index(name)}].function.parameters" for name in kept)
    many = body.parallel_tool_calls is not False and not (must and names is not None and len(names) == 1)
    return Toolbox(told=body.tools, offers=tuple(kept.values()), places=places, must=must, many=many)


def _choice(choice: str | dict[str, Any] | None) -> tuple[list[str] | None, bool]:
    """The names that may be called, None for all, and whether one has to be."""
    if choice in (None, "auto", "none"):
        return None, False
    if choice == "required":
        return None, True
    if isinstance(choice, dict):
        try:
            given = msgspec.convert(choice, ToolChoice)
        except msgspec.ValidationError as error:
            raise field_error(error, within="tool_choice") from None
        if given.type == "function" and given.function is not None:
            return [given.function.name], True
        allowed = given.allowed_tools
        if given.type == "allowed_tools" and allowed is not None and allowed.mode in ("auto", "required"):
            names = [one.function.name for one in allowed.tools if one.function is not None]
            if names and len(names) == len(allowed.tools):
                return names, allowed.mode == "required"
    raise RequestError(
        "tool_choice must be none, auto, required, "
        '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}.',
        param="tool_choice",
    )


def _offers(tools: Sequence[dict[str, Any]]) -> dict[str, OfferedTool]:
    offers: dict[str, OfferedTool] = {}
    for index, raw in enumerate(tools):
        where = f"tools[{index}]"
        try:
            tool = msgspec.convert(raw, Tool)
        except msgspec.ValidationError as error:
            raise field_error(error, within=where) from None
        if tool.type != "function":
            raise RequestError(f"{where}.type must be function, got {tool.type!r}.", param=f"{where}.type")
        if tool.function is None:
            raise RequestError(f"{where}.function is missing.", param=f"{where}.function")
        name, param = tool.function.name, f"{where}.function.name"
        if not _NAME.fullmatch(name):
            raise RequestError(f"{param} must be 1 to 128 letters, digits, _ . or -, got {name!r}.", param=param)
        if name in offers:
            raise RequestError(f"{param}: there are two tools named {name!r}.", param=param)
        schema = tool.function.parameters or NOTHING
        if schema.get("type", "object") != "object":
            param = f"{where}.function.parameters"
            raise RequestError(f"{param} must be the schema of an object.", param=param)
        offers[name] = OfferedTool(name=name, schema={"type": "object", **schema}, strict=bool(tool.function.strict))
    return offers
