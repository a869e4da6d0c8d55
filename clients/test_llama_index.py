"""llama-index, through its client for servers that speak OpenAI's API."""

from typing import Any, Literal

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    wild: bool


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@pytest.fixture(scope="module")
def model(url: str) -> OpenAILike:
    return OpenAILike(
        model="smol", api_base=f"{url}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=True, max_tokens=60, temperature=0, context_window=4096, timeout=300, max_retries=0,
    )  # fmt: skip


def test_an_answer_whole_and_streamed(model: OpenAILike) -> None:
    ask = [ChatMessage(role="user", content="Say something about rain.")]
    whole = str(model.chat(ask).message.content)
    assert whole and "".join(chunk.delta or "" for chunk in model.stream_chat(ask)) == whole


def test_a_completion(url: str) -> None:
    plain = OpenAILike(
        model="smol", api_base=f"{url}/v1", api_key="none", is_chat_model=False, max_tokens=8, timeout=300
    )
    assert plain.complete("Once upon a time").text


def test_a_structured_answer(model: OpenAILike) -> None:
    found: Any = model.as_structured_llm(Pet).complete("A pet?").raw
    assert isinstance(found, Pet)


def test_a_tool(model: OpenAILike) -> None:
    tool = FunctionTool.from_defaults(weather)
    result = model.predict_and_call(
        [tool], "What is the weather in Rome?", tool_required=True, allow_parallel_tool_calls=False
    )
    assert "rain in" in str(result)
