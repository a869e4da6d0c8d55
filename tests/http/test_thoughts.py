"""Thoughts, their budget and what follows them, through a whole server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.http.conftest import Server
from tests.waiting import SECONDS

THINKER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{# </think> #}{% endif %}"
)
HELLO: Any = [{"role": "user", "content": "Hello!"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "pick",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    server = Server(
        tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny", "--chat-template", THINKER,
        "--thinking-budget", "40", "--overlap-depth", "1",
    )  # fmt: skip
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)


def whole(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"logit_bias": {"257": -100}, "max_tokens": 160, "seed": 7} | fields
    return client.chat.completions.create(model="tiny", messages=HELLO, **fields)


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str, str, str, str | None]:
    content = thought = arguments = ""
    finish = None
    for chunk in whole(client, stream=True, **fields):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or ():
                arguments += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return content, thought, arguments, finish


@pytest.mark.parametrize(("budget", "tokens"), [({}, 40), ({"thinking_budget": 5}, 5), ({"max_thinking_tokens": 0}, 0)])
def test_budgets(client: openai.OpenAI, budget: dict[str, int], tokens: int) -> None:
    reply = whole(client, extra_body=budget, n=2)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 2 * (tokens + len("\n</think>"))
    for choice in reply.choices:
        assert len(choice.message.content) <= 160 - tokens
    message = reply.choices[0].message
    thought = message.reasoning_content or ""
    assert streamed(client, extra_body=budget) == (message.content, thought, "", "length")


def test_a_schema_and_a_call_behind_thoughts(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]}}
    reply = whole(client, response_format=form, extra_body={"thinking_budget": 6})
    message = reply.choices[0].message
    assert message.content.replace(" ", "").replace("\n", "").replace("\t", "") in ('{"a":1}', '{"a":2}')
    assert reply.choices[0].finish_reason == "stop" and message.reasoning_content
    fields: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    reply = whole(client, **fields)
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "pick" and reply.choices[0].finish_reason == "tool_calls"
    assert streamed(client, **fields) == (
        "",
        reply.choices[0].message.reasoning_content,
        call.function.arguments,
        "tool_calls",
    )


def test_hanging_up_in_the_middle(client: openai.OpenAI, server: Server) -> None:
    stream = whole(client, stream=True, max_tokens=400, extra_body={"thinking_budget": 300})
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    server.wait_until_running(0)
