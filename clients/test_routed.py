"""Clients that people use, through `sapwood route`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

import anthropic
import bentoml
import httpx
import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

ASK = "Say something about rain."
SECONDS = 300.0


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    wild: bool


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def test_openai(routed: str) -> None:
    client = openai.OpenAI(base_url=f"{routed}/v1", api_key="none", max_retries=0, timeout=SECONDS)
    assert "smol" in [model.id for model in client.models.list()]
    fields: Any = {"model": "smol", "messages": [{"role": "user", "content": ASK}], "max_tokens": 12, "temperature": 0}
    reply = client.chat.completions.with_raw_response.create(**fields)
    assert reply.headers["x-sapwood-server"]
    text = reply.parse().choices[0].message.content
    chunks = client.chat.completions.create(**fields, stream=True)
    assert text and "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**fields | {"model": "nobody"})


def test_anthropic(routed: str) -> None:
    client = anthropic.Anthropic(base_url=routed, api_key="none", max_retries=0, timeout=SECONDS)
    fields: Any = {"model": "smol", "messages": [{"role": "user", "content": ASK}], "max_tokens": 12, "temperature": 0}
    (block,) = client.messages.create(**fields).content
    with client.messages.stream(**fields) as stream:
        assert "".join(stream.text_stream) == block.text  # type: ignore[union-attr]


def test_langchain(routed: str) -> None:
    fields: Any = {"base_url": f"{routed}/v1", "api_key": "none", "model": "smol", "temperature": 0, "max_retries": 0}
    model = ChatOpenAI(**fields, max_completion_tokens=12, timeout=SECONDS)
    whole = model.invoke(ASK)
    assert whole.content and "".join(str(chunk.content) for chunk in model.stream(ASK)) == whole.content
    roomy = ChatOpenAI(**fields, max_completion_tokens=60, timeout=SECONDS)
    assert isinstance(roomy.with_structured_output(Pet, method="json_schema").invoke("A pet?"), Pet)
    (call,) = roomy.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Rome?").tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Paris", "Rome")


def test_llama_index(routed: str) -> None:
    model = OpenAILike(
        model="smol", api_base=f"{routed}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=True, max_tokens=60, temperature=0, context_window=4096, timeout=SECONDS, max_retries=0,
    )  # fmt: skip
    ask = [ChatMessage(role="user", content=ASK)]
    whole = str(model.chat(ask).message.content)
    assert whole and "".join(chunk.delta or "" for chunk in model.stream_chat(ask)) == whole
    found: Any = model.as_structured_llm(Pet).complete("A pet?").raw
    assert isinstance(found, Pet)


@pytest.fixture
def service(routed: str, tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "ASKED": f"{routed}/v1", "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "bentoml", "serve", "bento:Asker", "--port", str(port)]
    with subprocess.Popen(command, cwd=Path(__file__).parent, env=env, stdout=subprocess.DEVNULL) as process:
        until = monotonic() + SECONDS
        while True:
            assert process.poll() is None and monotonic() < until
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.HTTPError:
                sleep(0.2)
        yield url
        process.terminate()


def test_bentoml(service: str) -> None:
    with bentoml.SyncHTTPClient(service, timeout=SECONDS) as client:
        whole = client.whole(prompt=ASK)  # type: ignore[attr-defined]
        assert whole and "".join(client.streamed(prompt=ASK)) == whole  # type: ignore[attr-defined]
