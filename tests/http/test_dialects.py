"""Clients of other APIs than OpenAI's, against a real server with the small real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import ollama
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from tests.http.conftest import Server
from tests.waiting import SECONDS

ASK: Any = [{"role": "user", "content": "What is the weather in Paris? Use celsius."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Pet(BaseModel):
    kind: Literal["cat", "dog", "fish"]
    age: int = Field(ge=0, le=30)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Server]:
    server = Server(
        smollm2, "--served-model-name", "smol", "claude", "--max-model-len", "2048", "--max-num-seqs", "4",
        "--threads", "1",
    )  # fmt: skip
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture(scope="module")
def claude(real: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0, timeout=SECONDS)


def test_an_answer_streamed_and_whole(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": "claude", "messages": ASK, "max_tokens": 24, "extra_body": {"seed": 3}}
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert whole.content[0].type == "text" and whole.content[0].text == text
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    usage = streamed.usage
    assert usage.cache_read_input_tokens and not usage.cache_creation_input_tokens, "the prompt was there already"
    counted = claude.messages.count_tokens(model="smol", messages=ASK).input_tokens
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert [model.id for model in claude.models.list()] == ["smol", "claude"]


def test_a_loop_of_calls(claude: anthropic.Anthropic) -> None:
    messages: list[Any] = [*ASK]
    for choice in ("any", "tool"):
        chosen: Any = {"type": choice, "disable_parallel_tool_use": True} | (
            {"name": "weather"} if choice == "tool" else {}
        )
        fields: Any = {"model": "smol", "max_tokens": 60, "tools": [WEATHER], "tool_choice": chosen}
        with claude.messages.stream(messages=messages, **fields) as stream:
            reply = stream.get_final_message()
        (call,) = reply.content
        assert call.type == "tool_use" and call.input["city"] in ("Paris", "Rome", "Oslo")  # type: ignore[index]
        assert reply.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
        messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    last = claude.messages.create(model="smol", messages=messages, tools=[WEATHER], max_tokens=8)
    assert last.content and last.usage.cache_read_input_tokens


def test_parse_an_answer(claude: anthropic.Anthropic) -> None:
    reply = claude.messages.parse(
        model="smol", messages=[{"role": "user", "content": "A pet?"}], output_format=Pet, max_tokens=60
    )
    assert isinstance(reply.parsed_output, Pet)


def test_langchain(real: Server) -> None:
    @tool
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    model = ChatAnthropic(
        model_name="smol", base_url=real.url, api_key="none", max_tokens_to_sample=60, timeout=SECONDS, stop=None
    )  # type: ignore[arg-type]
    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("What is the weather in Rome?")
    answer = bound.invoke([question])
    result = weather.invoke(answer.tool_calls[0])
    assert "rain in" in result.content and model.invoke([question, answer, result]).content
    streamed = None
    for chunk in bound.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and weather.invoke(streamed.tool_calls[0]).content  # type: ignore[attr-defined]


def test_ollama_streamed_and_whole(real: Server) -> None:
    client = ollama.Client(real.url, timeout=SECONDS)
    fields: Any = {"model": "smol:latest", "messages": ASK, "options": {"num_predict": 16, "seed": 3}, "logprobs": True}
    whole = client.chat(**fields)
    lines = list(client.chat(**fields, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert (whole.done_reason, whole.eval_count, len(whole.logprobs or ())) == ("length", 16, 16)
    pet = client.generate("smol", "A pet?", format=Pet.model_json_schema(), options={"num_predict": 60})
    assert Pet.model_validate_json(pet.response or "")

    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Which.
        """
        return f"rain in {city}"

    assert client.chat("smol", ASK, tools=[weather], options={"num_predict": 8}).done
    vectors = client.embed("smol", ["x", "y"]).embeddings
    assert [len(vector) for vector in vectors] == [576, 576] and vectors[0] != vectors[1]


def test_ollama_knows_the_model(real: Server) -> None:
    client = ollama.Client(real.url, timeout=SECONDS)
    assert [model.model for model in client.list().models] == ["smol:latest", "claude:latest"]
    shown = client.show("smol")
    assert shown.details is not None and shown.modelinfo is not None
    assert (shown.details.parameter_size, shown.details.family) == ("135M", "llama")
    assert shown.modelinfo["llama.context_length"] == 2048 and shown.modelinfo["general.parameter_count"] > 134e6
    (running, _) = client.ps().models
    assert running.context_length == 2048 and (running.size or 0) > 5e7 and not running.size_vram
