"""Anthropic's way to offer tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server import functions
from sapwood.server.calling import Toolbox
from sapwood.server.functions import Choice, Declared


class GivenTool(msgspec.Struct, kw_only=True):
    """`type` is given by tools that Anthropic itself runs or defines; of these there are none here."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    def told(self) -> dict[str, Any]:
        """As templates print it."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}

    def declared(self, at: str) -> Declared:
        if self.type not in (None, "custom"):
            raise RequestError(
                f"{at}.type: there is no {self.type!r} here; give a tool of type custom, with an input_schema.",
                param=f"{at}.type",
            )
        if self.input_schema is None:
            raise RequestError(f"{at}.input_schema is missing.", param=f"{at}.input_schema")
        return Declared(self.name, self.input_schema, bool(self.strict), f"{at}.name", f"{at}.input_schema")


class GivenChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def chosen(self) -> Choice:
        if self.type == "tool" and self.name is None:
            raise RequestError("tool_choice.name is missing.", param="tool_choice.name")
        names = [self.name] if self.type == "tool" and self.name is not None else None
        return Choice(names, must=self.type in ("any", "tool"), never=self.type == "none")


def toolbox_of(tools: Sequence[GivenTool] | None, choice: GivenChoice | None, *, reads: bool) -> Toolbox | None:
    """A request's tools, None without any. `reads`: this server reads calls. Raises RequestError naming the field."""
    choice, tools = choice or GivenChoice(type="auto"), tools or ()
    return functions.toolbox_of(
        [tool.told() for tool in tools],
        [tool.declared(f"tools[{index}]") for index, tool in enumerate(tools)],
        choice.chosen(),
        many=not choice.disable_parallel_tool_use,
        reads=reads,
    )
