"""Clients that people use, against a real server with the small real model: schemas, tools, streams, loops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import instructor
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.http.conftest import Server
from tests.waiting import SECONDS, eventually

ASK: Any = [{"role": "user", "content": "What is the weather in Paris? Use celsius."}]


class Pet(BaseModel):
    kind: Literal["cat", "dog", "fish"]
    age: int = Field(ge=0, le=30)
    wild: bool


CLOSED_PET = Pet.model_json_schema() | {"additionalProperties": False}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Server]:
    # One thread: on a busy machine more of them wait for each other longer than they compute.
    server = Server(
        smollm2, "--served-model-name", "smol", "--max-model-len", "2048", "--max-num-seqs", "4", "--threads", "1"
    )
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture(scope="module")
def client(real: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)


@pytest.fixture(scope="module")
def model(real: Server) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{real.url}/v1", api_key="none", model="smol", max_tokens=120, seed=1, timeout=SECONDS)  # type: ignore[arg-type]


def test_parse_an_answer(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="smol", messages=[{"role": "user", "content": "A pet?"}], response_format=Pet, max_tokens=80
    )
    assert isinstance(reply.choices[0].message.parsed, Pet)


@pytest.mark.parametrize("choice", ["required", "Weather"])
def test_parse_calls(client: openai.OpenAI, choice: str) -> None:
    named: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    reply = client.chat.completions.parse(
        model="smol", messages=ASK, tools=[openai.pydantic_function_tool(Weather)], tool_choice=named,
        parallel_tool_calls=False, max_tokens=80,
    )  # fmt: skip
    (call,) = reply.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Weather) and reply.choices[0].finish_reason == "tool_calls"


def test_a_strict_tool_that_may_be_called(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="smol", messages=ASK, tools=[openai.pydantic_function_tool(Weather)], max_tokens=60, temperature=0
    )
    for call in reply.choices[0].message.tool_calls or ():
        assert isinstance(call.function.parsed_arguments, Weather)


def test_an_answer_or_a_call(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="smol", messages=ASK, tools=[openai.pydantic_function_tool(Weather)], response_format=Pet, max_tokens=80,
        parallel_tool_calls=False,
    )  # fmt: skip
    message = reply.choices[0].message
    if message.tool_calls:
        assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
    else:
        assert isinstance(message.parsed, Pet)


def test_a_loop(client: openai.OpenAI) -> None:
    messages: list[Any] = [*ASK]
    tools: Any = [openai.pydantic_function_tool(Weather)]
    for turn in range(3):
        choice: Any = "required" if turn < 2 else "none"
        reply = client.chat.completions.create(
            model="smol", messages=messages, tools=tools, tool_choice=choice, max_tokens=150, seed=turn
        )
        message = reply.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            assert call.type == "function"
            weather = Weather.model_validate_json(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"15 degrees in {weather.city}"})
    assert turn == 2 and message.content and not message.tool_calls


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="smol", messages=ASK, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False, max_tokens=80, seed=5, logprobs=True,
    ) as stream:  # fmt: skip
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(deltas) == done.arguments and len(deltas) > 2
    assert isinstance(done.parsed_arguments, Weather)
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == done.parsed_arguments
    whole = client.chat.completions.create(
        model="smol", messages=ASK, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False, max_tokens=80, seed=5,
    )  # fmt: skip
    assert [one.function.arguments for one in whole.choices[0].message.tool_calls or ()] == [done.arguments]


def test_the_streaming_helper_with_a_schema(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "A pet?"}]
    with client.chat.completions.stream(model="smol", messages=messages, response_format=Pet, max_tokens=80) as stream:
        for event in stream:
            if event.type == "content.done":
                assert isinstance(event.parsed, Pet)
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(model: ChatOpenAI, method: Any) -> None:
    found = model.with_structured_output(Pet, method=method).invoke("Describe a pet.")
    assert isinstance(found, Pet)


def test_langchain_tools(model: ChatOpenAI) -> None:
    @tool
    def weather(city: Literal["Paris", "Rome"], days: Literal[1, 2]) -> str:
        """The weather of a city in some days."""
        return f"rain in {city} in {days} days"

    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("What is the weather in Rome?")
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage) and "rain in" in result.content
    assert model.invoke([question, answer, result]).content
    streamed = None
    for chunk in bound.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and weather.invoke(streamed.tool_calls[0]).content  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA])
def test_instructor(client: openai.OpenAI, mode: instructor.Mode) -> None:
    wrapped = instructor.from_openai(client, mode=mode)
    found = wrapped.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "A pet?"}],
        response_model=Pet,
        max_tokens=120,
        max_retries=1,
    )
    assert isinstance(found, Pet)


def test_eight_streams_side_by_side(client: openai.OpenAI, real: Server) -> None:
    """Plain, with a schema, with tools that must be called, and with one that may: all are whole, and say what they say
    alone. One more hangs up in the middle; nobody is left running."""
    tools: Any = [openai.pydantic_function_tool(Weather)]
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 40},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "pet", "schema": CLOSED_PET}}},
        {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": tools, "max_tokens": 40},
    ]

    def ask(number: int) -> tuple[str, str, str | None]:
        fields: dict[str, Any] = {"max_tokens": 120, "seed": number, "temperature": 0.8} | kinds[number % 4]
        text, arguments, finish = "", "", None
        for chunk in client.chat.completions.create(model="smol", messages=ASK, stream=True, **fields):
            (choice,) = chunk.choices
            assert finish is None, "the end has been told"
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                assert call.index == 0 and bool(call.id) == (call.function.name is not None)  # type: ignore[union-attr]
                arguments += call.function.arguments or ""  # type: ignore[union-attr]
            finish = choice.finish_reason
        return text, arguments, finish

    alone = [ask(number) for number in range(8)]
    leaving = client.chat.completions.create(
        model="smol", messages=ASK, stream=True, max_tokens=1500, tools=tools, tool_choice="required"
    )
    next(iter(leaving))
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(ask, range(8))
        leaving.close()
        found = list(together)
    assert found == alone
    for number, (text, arguments, finish) in enumerate(found):
        match number % 4:
            case 1:
                assert Pet.model_validate_json(text) and finish == "stop"
            case 2:
                assert Weather.model_validate_json(arguments) and not text and finish == "tool_calls"
            case _:
                assert (text or arguments) and finish
    eventually(lambda: (real.health().json()["running"], real.health().json()["waiting"]) == (0, 0))


def test_free_calls_are_counted(client: openai.OpenAI, real: Server) -> None:

    text = real.get("/metrics").text
    assert (
        json.loads(next(line.split()[1] for line in text.splitlines() if 'tool_calls_total{result="read"}' in line)) > 5
    )
