"""Anthropic's messages become those that templates take."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sapwood.base.errors import RequestError
from sapwood.server.anthropic.history import GivenBlock, GivenMessage, talk_of
from sapwood.server.front import Talk


def talk(*messages: dict[str, Any], system: Any = None) -> Talk:
    blocks = msgspec.convert(system, str | list[GivenBlock] | None)
    return talk_of(msgspec.convert(list(messages), list[GivenMessage]), blocks, {})


def test_calls_and_their_results_over_two_turns() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "no"}],
        "is_error": True,
    }
    said = talk(
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": ""}, call]},
        {
            "role": "user",
            "content": [result, {"type": "text", "text": "Again", "cache_control": {"type": "ephemeral"}}],
        },
    )
    function = {"name": "add", "arguments": {"a": 1}}
    assert said.messages == [
        {"role": "user", "content": "Add."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no", "name": "add"},
        {"role": "user", "content": "Again"},
    ]
    assert said.answers and not said.continues


def test_a_last_message_of_the_assistant_is_continued() -> None:
    said = talk({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"})
    assert said.continues and not said.answers


def test_messages_of_one_role_are_one_turn() -> None:
    assert talk({"role": "user", "content": "a"}, {"role": "user", "content": "b"}).messages == [
        {"role": "user", "content": "a\nb"}
    ]


@pytest.mark.parametrize("kind", ["image", "document"])
def test_what_is_not_text_is_refused_by_name(kind: str) -> None:
    with pytest.raises(RequestError, match=rf"messages\[0\].content\[0\].*{kind}") as caught:
        talk({"role": "user", "content": [{"type": kind, "source": {}}]})
    assert caught.value.param == "messages[0].content[0]"


def test_calls_are_not_continued() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
    with pytest.raises(RequestError, match="tool_result"):
        talk({"role": "user", "content": "Add."}, {"role": "assistant", "content": [call]})


def test_system_messages_keep_their_place() -> None:
    system = [
        {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "brief."},
    ]
    said = talk(
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "9 tokens left"},
        {"role": "system", "content": [{"type": "text", "text": "It is late"}]},
        {"role": "user", "content": "?"},
        system=system,
    )
    assert [(one["role"], one["content"]) for one in said.messages] == [
        ("system", "Be\nbrief."),
        ("user", "Hi"),
        ("system", "9 tokens left\nIt is late"),
        ("user", "?"),
    ]


def test_thoughts_of_others_are_no_thoughts() -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "text", "text": "Yes"},
    ]
    said = talk({"role": "user", "content": "Hi"}, {"role": "assistant", "content": blocks})
    assert said.messages[1] == {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "text"}, "messages[0].content[0].text"),
        ({"type": "tool_result", "content": "x"}, "messages[0].content[0].tool_use_id"),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, {"type": "image"}]},
            "messages[0].content[0].content[1]",
        ),
    ],
)
def test_errors_name_the_block(block: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        talk({"role": "user", "content": [block]})
    assert caught.value.param == param


def test_no_messages() -> None:
    with pytest.raises(RequestError, match="messages is empty"):
        talk()
