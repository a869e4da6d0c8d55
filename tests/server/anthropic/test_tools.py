"""Tools as Anthropic's clients offer them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sapwood.base.errors import RequestError
from sapwood.server.anthropic.tools import GivenChoice, GivenTool, toolbox_of
from sapwood.server.calling import Toolbox

ADD = {"name": "add", "input_schema": {"type": "object"}}
SUB = {"name": "sub", "description": "Less.", "input_schema": {}, "strict": True}


def toolbox(tools: list[dict[str, Any]], choice: dict[str, Any] | None = None) -> Toolbox | None:
    chosen = None if choice is None else msgspec.convert(choice, GivenChoice)
    return toolbox_of(msgspec.convert(tools, list[GivenTool]), chosen, reads=True)


@pytest.mark.parametrize(
    ("choice", "names", "must", "many"),
    [
        (None, ["add", "sub"], False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["add", "sub"], False, False),
        ({"type": "any"}, ["add", "sub"], True, True),
        ({"type": "tool", "name": "sub"}, ["sub"], True, False),
    ],
)
def test_a_choice_says_what_may_and_must_be_called(
    choice: dict[str, Any] | None, names: list[str], must: bool, many: bool
) -> None:
    box = toolbox([ADD, SUB], choice)
    assert box is not None
    assert ([offer.name for offer in box.offers], box.must, box.many) == (names, must, many)
    assert box.places[-1] == "tools[1].input_schema"


def test_none_offers_nothing() -> None:
    assert toolbox([ADD], {"type": "none"}) is None


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([], {"type": "any"}, "tool_choice"),
        ([ADD], {"type": "tool"}, "tool_choice.name"),
        ([ADD], {"type": "tool", "name": "mul"}, "tool_choice"),
        ([ADD, ADD], None, "tools[1].name"),
        ([{"name": "a b", "input_schema": {}}], None, "tools[0].name"),
        ([{"name": "bash", "type": "bash_20250124"}], None, "tools[0].type"),
        ([{"name": "add"}], None, "tools[0].input_schema"),
        ([{"name": "add", "input_schema": {"type": "array"}}], None, "tools[0].input_schema"),
    ],
)
def test_errors_name_the_field(tools: list[dict[str, Any]], choice: dict[str, Any] | None, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        toolbox(tools, choice)
    assert caught.value.param == param
