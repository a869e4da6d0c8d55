"""The tools of a response: functions, alone or in namespaces, and custom tools, which are functions of one text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server import functions
from sapwood.server.body import field_error
from sapwood.server.calling import Toolbox
from sapwood.server.functions import Choice, Declared
from sapwood.server.openai.responses.items import joined
from sapwood.server.openai.responses.protocol import ResponseRequest

_CHOICE = (
    'tool_choice must be none, auto, required, {"type": "function" or "custom", "name": ...} or '
    '{"type": "allowed_tools", "mode": ..., "tools": [...]}.'
)


class Input(msgspec.Struct, kw_only=True):
    """What a custom tool takes: any text, or one of a grammar."""

    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


class Tool(msgspec.Struct, kw_only=True):
    """Any of the kinds: `parameters` and `strict` are a function's, `format` a custom tool's, `tools` a namespace's."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: Input | None = None
    tools: list[dict[str, Any]] | None = None


class Chosen(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: str = "auto"
    tools: list[dict[str, Any]] = []


class Name(msgspec.Struct):
    """What a client calls a tool, and whether it takes a text instead of arguments."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass
class Tools:
    """What is offered, and what each is called by the client, by what it is called before the model."""

    box: Toolbox | None = None
    names: dict[str, Name] = field(default_factory=dict)

    def name(self, called: str) -> Name:
        return self.names.get(called) or Name(called)


def tools_of(body: ResponseRequest, *, reads: bool) -> Tools:
    """A request's tools. `reads`: this server reads calls. Raises RequestError naming the field."""
    tools, told, declared = Tools(), [], []
    for tool, namespace, where in _all(body.tools or [], "tools", None):
        name, schema, strict = joined(namespace, tool.name or ""), tool.parameters, bool(tool.strict)
        description = tool.description or ""
        if tool.type == "custom":
            schema, strict = _text_schema(tool.format)
            description = _with_grammar(description, tool.format)
        tools.names[name] = Name(tool.name or "", namespace, tool.type == "custom")
        function = {
            "name": name,
            "description": description,
            "parameters": schema or {"type": "object", "properties": {}},
        }
        told.append({"type": "function", "function": function})
        at = f"{where}.format" if tool.type == "custom" else f"{where}.parameters"
        declared.append(Declared(name, schema, strict, f"{where}.name", at))
    choice, many = _choice(body.tool_choice), body.parallel_tool_calls is not False
    tools.box = functions.toolbox_of(told, declared, choice, many=many, reads=reads)
    return tools


def _all(given: list[dict[str, Any]], within: str, namespace: str | None) -> Iterator[tuple[Tool, str | None, str]]:
    """The functions and custom tools, with their namespaces and where they stand. Raises RequestError for all others."""
    for index, raw in enumerate(given):
        where = f"{within}[{index}]"
        try:
            tool = msgspec.convert(raw, Tool)
        except msgspec.ValidationError as error:
            raise field_error(error, within=where) from None
        if tool.type in ("function", "custom"):
            yield tool, namespace, where
        elif tool.type == "namespace" and namespace is None:
            yield from _all(tool.tools or [], f"{where}.tools", tool.name)
        else:
            raise RequestError(
                f"{where}: this server does not run the built-in tool {tool.type!r}; leave it out, or offer a function.",
                param=f"{where}.type",
                code="unsupported_tool",
            )


def _text_schema(format: Input | None) -> tuple[dict[str, Any], bool]:
    """The parameters of a custom tool. An expression binds its text; of other grammars the model is told."""
    text: dict[str, Any] = {"type": "string"}
    bound = format is not None and format.type == "grammar" and format.syntax == "regex"
    if bound and format is not None:
        text["pattern"] = f"^(?:{format.definition or ''})$"
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return schema, bound


def _with_grammar(description: str, format: Input | None) -> str:
    if format is None or format.type != "grammar":
        return description
    return (
        f"{description}\n\nThe input has to match this {format.syntax or 'lark'} grammar:\n{format.definition}".strip()
    )


def _choice(given: str | Mapping[str, Any] | None) -> Choice:
    match given:
        case None | "auto" | "none":
            return Choice(never=given == "none")
        case "required":
            return Choice(must=True)
        case str():
            raise RequestError(_CHOICE, param="tool_choice")
    chosen = _chosen(given)
    if chosen.type != "allowed_tools":
        return Choice([_name_of(chosen)], must=True)
    if chosen.mode not in ("auto", "required") or not chosen.tools:
        raise RequestError(_CHOICE, param="tool_choice")
    return Choice([_name_of(_chosen(one)) for one in chosen.tools], must=chosen.mode == "required")


def _name_of(chosen: Chosen) -> str:
    if chosen.type not in ("function", "custom") or not chosen.name:
        raise RequestError(_CHOICE, param="tool_choice")
    return joined(chosen.namespace, chosen.name)


def _chosen(given: Mapping[str, Any]) -> Chosen:
    try:
        return msgspec.convert(given, Chosen)
    except msgspec.ValidationError as error:
        raise field_error(error, within="tool_choice") from None
