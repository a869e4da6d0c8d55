"""Agents: openai-agents over both of OpenAI's APIs, pydantic-ai over these and Anthropic's. Tools are called and answered."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponses
from pydantic_ai.output import NativeOutput, ToolOutput
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = pytest.mark.anyio
set_tracing_disabled(True)


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    wild: bool


@pytest.mark.parametrize("kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_agents(url: str, kind: Any, streamed: bool) -> None:
    asked = []

    @function_tool
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"rain in {city}"

    # Closed in the loop that it was used in: else whoever is tested when it is collected is told of it.
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        agent = Agent(
            name="forecaster", instructions="Use the tools.", tools=[weather], model=kind("smol", client),
            model_settings=ModelSettings(tool_choice="required", max_tokens=60, temperature=0, parallel_tool_calls=False),
        )  # fmt: skip
        if streamed:
            running = Runner.run_streamed(agent, "What is the weather in Paris?", max_turns=3)
            kinds = [event.type async for event in running.stream_events()]
            assert "raw_response_event" in kinds and running.final_output
        else:
            assert (await Runner.run(agent, "What is the weather in Paris?", max_turns=3)).final_output
    assert len(asked) == 1  # it is free to answer behind the first call


def model_of(kind: str, url: str) -> Model:
    if kind == "anthropic":
        return AnthropicModel("smol", provider=AnthropicProvider(base_url=url, api_key="none"))
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    return (OpenAIChatModel if kind == "chat" else PydanticResponses)("smol", provider=provider)


@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
async def test_pydantic_ai(url: str, kind: str) -> None:
    model, settings = model_of(kind, url), {"max_tokens": 80, "temperature": 0.0, "timeout": 300}
    plain = await PydanticAgent(model, model_settings=settings).run("Hello")  # type: ignore[call-overload]
    assert plain.output and plain.usage.output_tokens
    async with PydanticAgent(model, model_settings=settings).run_stream("Hello") as stream:  # type: ignore[call-overload]
        assert await stream.get_output() == plain.output
    for wanted in (ToolOutput(Pet), *([NativeOutput(Pet)] if kind != "anthropic" else [])):
        found = await PydanticAgent(model, output_type=wanted, model_settings=settings).run("A pet?")  # type: ignore[call-overload]
        assert isinstance(found.output, Pet)
