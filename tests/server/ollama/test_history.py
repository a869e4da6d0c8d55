"""Ollama's messages become those that templates take."""

from __future__ import annotations

from typing import Any

import msgspec

from sapwood.server.front import Talk
from sapwood.server.ollama.history import talk_of
from sapwood.server.ollama.protocol import GivenMessage

ASK = {"role": "user", "content": "Add."}


def talk(*messages: dict[str, Any]) -> Talk:
    return talk_of(msgspec.convert(list(messages), list[GivenMessage]), {})


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"a": 1}}, **more}


def test_calls_without_ids_get_some_and_their_results_too() -> None:
    said = talk(
        ASK,
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [call("add"), call("sub"), call("add")]},
        {"role": "tool", "content": "1", "tool_name": "sub"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3", "tool_name": "add"},
    )
    calls = said.messages[1]["tool_calls"]
    assert [one["id"] for one in calls] == ["call00001", "call00002", "call00003"]
    assert calls[0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert said.messages[1]["reasoning_content"] == "Hm"
    results = [(one["tool_call_id"], one["name"], one["content"]) for one in said.messages[2:]]
    assert results == [("call00002", "sub", "1"), ("call00001", "add", "2"), ("call00003", "add", "3")]


def test_ids_that_are_given_stay() -> None:
    said = talk(
        ASK,
        {"role": "assistant", "tool_calls": [call("add", id="x"), call("add", id="y")]},
        {"role": "tool", "content": "1", "tool_call_id": "y"},
        {"role": "tool", "content": "2", "tool_call_id": "unknown", "tool_name": "f"},
    )
    assert [one["tool_call_id"] for one in said.messages[2:]] == ["y", "unknown"]


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert talk(ASK, {"role": "assistant", "content": "Well,"}).continues
    assert not talk(ASK, {"role": "assistant", "content": "", "tool_calls": [call("add")]}).continues
