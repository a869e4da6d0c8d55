from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sapwood.base.errors import EngineDead, GenerationFailed
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.images.gallery import Gallery
from sapwood.images.sources import Sources
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.broken import BODIES
from tests.server.fakes import MODEL, FakeEngine, overloaded

pytestmark = pytest.mark.anyio

CHAT, TEXT, NATIVE = "/v1/chat/completions", "/v1/completions", "/generate"
HELLO = [{"role": "user", "content": "hello"}]
IMAGE = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:..."}}]


def check_shape(reply: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """Every error has the same four fields, whatever went wrong."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    return error


SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -5}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({"max_tokens": 5, "min_new_tokens": 6}, "min_new_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"extra_key": 5}, "extra_key"),
    ({"seed": 2**70}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": "much"}}, "logit_bias[...]"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
    ({"allowed_token_ids": "all"}, "allowed_token_ids"),
    ({"bad_words": ["a", " "]}, "bad_words"),
    ({"bad_words": "a"}, "bad_words"),
    ({"bad_words": ["a"] * 513}, "bad_words"),
    ({"bad_words": ["a" * 4097]}, "bad_words"),
    ({"logprob_token_ids": [5]}, "logprob_token_ids"),
    ({"token_ids_logprob": [5]}, "token_ids_logprob"),
    ({"prompt_logprobs": 1, "logprob_token_ids": [99999]}, "logprob_token_ids"),
    ({"prompt_logprobs": 1, "token_ids_logprob": [5] * 65}, "token_ids_logprob"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop": [None]}, "stop[0]"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt_logprobs": 65}, "prompt_logprobs"),
    ({"priority": 2**40}, "priority"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
    ({"guided_json": {}, "guided_regex": "a+"}, "guided_regex"),
    ({"guided_regex": "(a"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": [1]}, "guided_choice[0]"),
    ({"ebnf": "root ::= ["}, "ebnf"),
    ({"structural_tag": {"structures": []}}, "structural_tag"),
    ({"structured_outputs": {"jsn": {}}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "{", "disable_any_whitespace": True}}, "structured_outputs.json"),
    ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs.choice"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"use_beam_search": True, "regex": "a+"}, "use_beam_search"),
]


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize(("fields", "param"), SAMPLING)
async def test_bad_fields(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"prompt": "x"} if path == TEXT else {"messages": HELLO}
    error = check_shape(await http.post(path, json=body | fields), 400, param)
    assert error["type"] == "invalid_request_error"
    assert param.partition("[")[0] in error["message"]
    assert engine.asked == []


PROMPTS: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": ["a", ""]}, "prompt"),
    (TEXT, {"prompt": ["a", 5]}, "prompt"),
    (TEXT, {"prompt": [5, [6]]}, "prompt"),
    (TEXT, {"prompt": [5, -1]}, "prompt"),
    (TEXT, {"prompt": [99999]}, "prompt"),
    (TEXT, {"prompt": [10**40]}, "prompt"),
    (TEXT, {"prompt": [1.5]}, "prompt[0]"),
    (TEXT, {"prompt": [True]}, "prompt[0]"),
    (TEXT, {"prompt": {"text": "x"}}, "prompt"),
    (TEXT, {"prompt": [5] * 600}, "prompt"),
    (TEXT, {"prompt": [5] * 512}, "prompt"),
    (TEXT, {"prompt": "x" * 1_000_000}, "prompt"),
    (TEXT, {"prompt": ["x"] * 1025}, "prompt"),
    (TEXT, {"prompt": ["x"] * 513, "n": 2}, "prompt"),
    (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (TEXT, {"prompt": "x", "logprobs": 65}, "logprobs"),
    (TEXT, {"prompt": "x", "logprobs": -1, "echo": True}, "logprobs"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0]"),
    (CHAT, {"messages": [*HELLO, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    (CHAT, {"messages": [*HELLO, {"role": "user", "content": IMAGE}]}, "messages[1].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": "raise"}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "long " * 5000}]}, "messages"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": 5000}, "max_completion_tokens"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 65}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "logprobs": 3}, "logprobs"),
    (CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (
        CHAT,
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
    (NATIVE, {}, "text"),
    (NATIVE, {"text": "x", "input_ids": [5]}, "text"),
    (NATIVE, {"text": ""}, "text"),
    (NATIVE, {"text": []}, "text"),
    (NATIVE, {"input_ids": []}, "input_ids"),
    (NATIVE, {"input_ids": [5, [6]]}, "input_ids"),
    (NATIVE, {"input_ids": [-5]}, "input_ids"),
    (NATIVE, {"input_ids": [5] * 600}, "input_ids"),
    (NATIVE, {"text": "x", "sampling_params": {"temperature": "hot"}}, "sampling_params.temperature"),
    (NATIVE, {"text": "x", "sampling_params": {"temprature": 1}}, "sampling_params"),
    (NATIVE, {"text": "x", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
    (NATIVE, {"text": "x", "sampling_params": {"max_new_tokens": 5000}}, "max_new_tokens"),
    (NATIVE, {"text": "x", "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 5}}, "min_new_tokens"),
    (NATIVE, {"text": "x", "sampling_params": {"regex": "a+", "ebnf": "root ::= [a]"}}, "ebnf"),
    (NATIVE, {"text": "x", "sampling_params": {"regex": "(a"}}, "regex"),
    (NATIVE, {"text": "x", "sampling_params": [{}, {}]}, "sampling_params"),
    (NATIVE, {"text": "x", "return_logprob": True, "top_logprobs_num": 65}, "top_logprobs_num"),
    (NATIVE, {"text": "x", "return_logprob": True, "logprob_start_len": 50}, "logprob_start_len"),
    (NATIVE, {"text": "x", "token_ids_logprob": [5]}, "token_ids_logprob"),
    (NATIVE, {"text": "x", "return_logprob": True, "token_ids_logprob": [5, [6]]}, "token_ids_logprob"),
    (NATIVE, {"text": "x", "return_logprob": True, "token_ids_logprob": [[5], [6]]}, "token_ids_logprob"),
    (NATIVE, {"text": "x", "return_logprob": True, "token_ids_logprob": [99999]}, "token_ids_logprob"),
    (NATIVE, {"text": "x", "video_data": "data:..."}, "video_data"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [99999]}, "tokens"),
    ("/detokenize", {"tokens": ["x"]}, "tokens[0]"),
]


@pytest.mark.parametrize(("path", "body", "param"), PROMPTS)
async def test_bad_prompts(http: httpx.AsyncClient, engine: FakeEngine, path: str, body: Any, param: str) -> None:
    check_shape(await http.post(path, json=body), 400, param)
    assert engine.asked == []


@pytest.mark.parametrize("raw", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_bad_json(http: httpx.AsyncClient, path: str, raw: bytes) -> None:
    reply = await http.post(path, content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    check_shape(reply, 400, reply.json()["error"]["param"])


@pytest.mark.parametrize(
    ("path", "raw", "param"),
    [
        (TEXT, b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (TEXT, b'{"prompt": "x", "temperature": -Infinity}', "temperature"),
        (TEXT, b'{"prompt": "x", "logit_bias": {"5": 1, "6": NaN}}', "logit_bias.6"),
        (TEXT, b'{"prompt": ["fine", "\\ud800"]}', "prompt[1]"),
        (TEXT, b'{"prompt": "\\ud83d\\ude00", "top_p": NaN}', "top_p"),
        (CHAT, b'{"messages": [{"role": "user", "content": "a \\udc00"}]}', "messages[0].content"),
        (CHAT, b'{"messages": [], "\\ud800": 1}', None),
    ],
)
async def test_values_that_are_not_json_are_named(
    http: httpx.AsyncClient, path: str, raw: bytes, param: str | None
) -> None:
    reply = await http.post(path, content=raw, headers={"content-type": "application/json"})
    error = check_shape(reply, 400, param)
    assert error["message"].startswith(param or "The body is not valid JSON")


async def test_unknown_model(http: httpx.AsyncClient) -> None:
    for path, body in ((TEXT, {"prompt": "x"}), (CHAT, {"messages": HELLO}), ("/tokenize", {"prompt": "x"})):
        error = check_shape(await http.post(path, json=body | {"model": "gpt-99"}), 404, "model")
        assert error["code"] == "model_not_found"
    check_shape(await http.get("/v1/models/gpt-99"), 404, "model")


async def test_unknown_path_method_and_type(http: httpx.AsyncClient) -> None:
    check_shape(await http.get("/v2/nothing"), 404)
    check_shape(await http.get(TEXT), 405)
    error = check_shape(await http.post(TEXT, content=b"<x/>", headers={"content-type": "text/xml"}), 415)
    assert "send the header Content-Type: application/json" in error["message"]


async def test_empty_body(http: httpx.AsyncClient) -> None:
    error = check_shape(await http.post(TEXT, content=b"", headers={"content-type": "application/json"}), 400)
    assert "empty" in error["message"]


@pytest.mark.parametrize("config", [Config(server=ServerConfig(max_body_bytes=1000))])
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_limit(http: httpx.AsyncClient, chunked: bool) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 500
            yield b" " * 500

    content: Any = body() if chunked else b" " * 1001
    reply = await http.post(TEXT, content=content, headers={"content-type": "application/json"})
    check_shape(reply, 413)
    assert reply.headers["connection"] == "close"
    assert sent <= 6000  # a little is read on, so that the client hears why


@pytest.mark.parametrize("config", [Config(server=ServerConfig(api_key="sesam"))])
async def test_key(http: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    for wrong in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic sesam"}, {"authorization": "Bearer "}):
        for path in (TEXT, NATIVE, "/tokenize", "/flush_cache", "/nowhere"):
            error = check_shape(await http.post(path, json=body, headers=wrong), 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert (await http.post(TEXT, json=body, headers={"authorization": "Bearer sesam"})).status_code == 200
    for path in ("/health", "/metrics", "/version"):
        assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("path", [TEXT, CHAT, NATIVE])
@pytest.mark.parametrize("stream", [False, True])
async def test_engine_failures_before_the_first_token(
    http: httpx.AsyncClient, engine: FakeEngine, path: str, stream: bool
) -> None:
    body = {TEXT: {"prompt": "x"}, CHAT: {"messages": HELLO}, NATIVE: {"text": "x"}}[path] | {"stream": stream}
    engine.failure = overloaded()
    reply = await http.post(path, json=body)
    check_shape(reply, 503)
    assert int(reply.headers["retry-after"]) > 0
    engine.failure = EngineDead("killed by signal 9")
    assert "signal 9" in check_shape(await http.post(path, json=body), 503)["message"]
    engine.failure = GenerationFailed("the logits are not finite")
    assert "not finite" in check_shape(await http.post(path, json=body), 500)["message"]
    engine.failure = None
    assert (await http.post(path, json=body)).status_code == 200


@pytest.mark.parametrize("count", [1, 2])
async def test_failure_in_the_middle_of_a_stream(http: httpx.AsyncClient, engine: FakeEngine, count: int) -> None:
    engine.failure, engine.fail_after = EngineDead("killed by signal 9"), 3
    reply = await http.post(TEXT, json={"prompt": ["x"] * count, "stream": True})
    assert reply.status_code == 200
    *events, error, done = reply.text.removesuffix("\n\n").split("\n\n")
    assert len(events) >= 2
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert engine.running == 0


async def test_bugs_are_logged_not_told(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tokens: list[int], params: object) -> list[int]:
        raise KeyError("a secret detail")

    engine.answer = broken
    with caplog.at_level(logging.ERROR):
        reply = await http.post(TEXT, json={"prompt": "my private prompt"})
    assert "secret" not in check_shape(reply, 500)["message"]
    assert "secret detail" in caplog.text
    assert "private prompt" not in caplog.text


async def test_bad_requests_harm_nobody(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    """A batch with one prompt too long is refused as a whole, and leaves nothing running."""
    reply = await http.post(TEXT, json={"prompt": [[5], [6] * 600, [7]]})
    check_shape(reply, 400, "prompt")
    assert engine.running == 0


async def test_an_engine_that_has_left_out_the_tower_is_shown_nothing(engine: FakeEngine, text: TextModel) -> None:
    """As some devices want it, of which the front knows nothing: what it is shown is refused by its place, and not fetched."""
    app = create_app(engine, text, Config(), MODEL, gallery=Gallery(Any, Sources(), most_pixels=1))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        reply = await http.post(CHAT, json={"messages": [{"role": "user", "content": IMAGE}]})
    assert "takes text" in check_shape(reply, 400, "messages[0].content")["message"]


async def test_request_ids(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await http.get("/nowhere", headers={"x-request-id": "bad id"})).headers["x-request-id"]
    assert made != "bad id"
    assert len(made) == 32


async def test_cors(engine: FakeEngine, text: TextModel) -> None:
    config = Config(server=ServerConfig(cors_origins="https://a.example, https://b.example", api_key="k"))
    app = create_app(engine, text, config, MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        asked = {"origin": "https://b.example", "access-control-request-method": "POST"}
        reply = await http.options(TEXT, headers=asked)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://b.example"
        refused = await http.post(TEXT, headers={"origin": "https://b.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://b.example"
        other = await http.get("/health", headers={"origin": "https://c.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("config", [Config(server=ServerConfig(log_requests=True, api_key="sesam"))])
async def test_log_line(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sapwood"):
        await http.post(TEXT, json={"prompt": "private"}, headers={"authorization": "Bearer sesam"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "sapwood.observe.observer"]
    assert line.startswith("POST /v1/completions 200 ") and line.endswith(", length") and ", output " in line
    assert "private" not in caplog.text
    assert "sesam" not in caplog.text
