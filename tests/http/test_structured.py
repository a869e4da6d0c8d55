"""Restricted outputs of a real server, by the official client and by plain HTTP."""

from __future__ import annotations

import concurrent.futures as futures
import json
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.grammar.test_compiler import HOSTILE
from tests.http.conftest import Server, alive
from tests.waiting import SECONDS, eventually

HELLO: Any = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 300} | fields)


def check(text: str) -> None:
    value = json.loads(text)
    assert value["kind"] in ("cat", "dog") and 0 <= value["age"] <= 30 and len(value) == 2


def test_json_schemas(client: openai.OpenAI) -> None:
    reply = chat(client, n=3, response_format=FORMAT, logprobs=True, top_logprobs=2)
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content


def test_streams_say_the_same(client: openai.OpenAI) -> None:
    whole = chat(client, response_format=FORMAT, seed=3).choices[0].message.content
    chunks = list(chat(client, response_format=FORMAT, seed=3, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "stop"
    check(whole)


def test_other_spellings(client: openai.OpenAI, server: Server) -> None:
    choice = chat(client, extra_body={"structured_outputs": {"choice": ["certainly", "never"]}}).choices[0]
    assert choice.message.content in ("certainly", "never")
    reply = client.completions.create(
        model="tiny", prompt="x", max_tokens=50, extra_body={"guided_regex": r"\d{3}-\d{4}"}
    )
    assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", reply.choices[0].text)
    body = {"text": "x", "sampling_params": {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 300}}
    check(server.post("/generate", json=body).json()["text"])


def test_a_hostile_schema_gets_400_in_time_and_delays_nobody(client: openai.OpenAI, server: Server) -> None:
    chat(client, response_format=FORMAT)  # what is started once has been

    def hostile(number: int) -> httpx.Response:
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": HOSTILE | {"title": str(number)}}}
        body = {"model": "tiny", "messages": HELLO, "response_format": schema}
        return server.post("/v1/chat/completions", json=body)

    with futures.ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(hostile, number) for number in range(3)]
        eventually(lambda: all(reply.running() for reply in replies))
        check(chat(client, response_format=FORMAT).choices[0].message.content)
        fresh = FORMAT | {"json_schema": {"name": "y", "schema": SCHEMA | {"title": "not seen before"}}}
        check(chat(client, response_format=fresh).choices[0].message.content)
        assert not any(reply.done() for reply in replies)
        for reply in replies:
            error = reply.result().json()["error"]
            assert reply.result().status_code == 400 and error["param"] == "response_format.json_schema.schema"
            assert "more than 2 s" in error["message"]


def test_the_metrics_tell(client: openai.OpenAI, server: Server) -> None:
    chat(client, response_format=FORMAT)

    def told() -> bool:
        text = server.get("/metrics").text
        names = ("constrained", "masks", "forced_tokens", "compiled_grammars", "mask_seconds", "compile_seconds")
        found = {name: re.search(rf"^sapwood_engine_{name}_total (\S+)", text, re.MULTILINE) for name in names}
        return all(one is not None and float(one[1]) > 0 for one in found.values())

    eventually(told)


def test_no_process_stays_behind(own_server: Server) -> None:
    client = openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)
    chat(client, response_format=FORMAT)
    pid = own_server.process.pid
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    trials = [c for c in children if b"grammar.trial" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(trials) == 1
    own_server.process.kill()
    eventually(lambda: not alive(trials[0]))
