"""litellm, as each of the providers whose API is served."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(params=["openai", "anthropic", "ollama_chat"])
def known(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    base = f"{url}/v1" if request.param == "openai" else url
    return {"model": f"{request.param}/smol", "api_base": base, "api_key": "none", "timeout": 300}


def test_an_answer_whole_and_streamed(known: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = litellm.completion(**known, **fields)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == 12
    chunks = litellm.completion(**known, **fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_a_call(known: dict[str, Any]) -> None:
    if known["model"].startswith("ollama"):
        pytest.skip("Ollama's API has no way to ask for a call")
    reply = litellm.completion(
        **known, messages=ASK, max_tokens=80, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert reply.choices[0].finish_reason == "tool_calls"


def test_responses(url: str) -> None:
    reply = litellm.responses(
        model="openai/smol", input="Hello", api_base=f"{url}/v1", api_key="none", max_output_tokens=16, timeout=300
    )
    assert reply.output[0].content[0].text  # type: ignore[union-attr]
