"""What clients of a real server see, by the official client and by plain HTTP."""

from __future__ import annotations

import concurrent.futures as futures
import json
import re
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any

import openai
import pytest

from tests.broken import BODIES
from tests.http.conftest import Server
from tests.waiting import SECONDS, eventually

JSON = {"content-type": "application/json"}
PROMPT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": PROMPT, "max_tokens": 16, "temperature": 0} | fields)


def test_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 20,
        "temperature": 0,
        "logit_bias": {"257": -100},
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and text
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 20


def test_a_shared_prefix_is_reported_as_cached(client: openai.OpenAI, server: Server) -> None:
    server.post("/flush_cache").raise_for_status()
    cold, warm = complete(client), complete(client, prompt=PROMPT + "Again?")
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert warm.usage.prompt_tokens_details.cached_tokens >= len(PROMPT) - 16


def test_salts_keep_caches_apart(client: openai.OpenAI) -> None:
    complete(client)
    other = complete(client, extra_body={"cache_salt": "somebody else"})
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_seeded_samples_do_not_depend_on_the_batch(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "seed": 7, "max_tokens": 24}
    alone = complete(client, **fields).choices[0].text
    with futures.ThreadPoolExecutor(12) as pool:
        others = [
            pool.submit(complete, client, prompt=f"{i} bottles", temperature=1.0, max_tokens=30) for i in range(11)
        ]
        together = pool.submit(complete, client, **fields).result().choices[0].text
        futures.wait(others)
    assert together == alone


def test_many_prompts_and_n(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=["one", "two"], n=3, temperature=1.0, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) > 2


def test_stop_strings_end_the_text_and_are_not_in_it(client: openai.OpenAI) -> None:
    free = complete(client, max_tokens=40).choices[0].text
    stop = free[10:13]
    stopped = complete(client, max_tokens=40, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == free[: free.index(stop)]
    pieces = [c.choices[0].text for c in complete(client, max_tokens=40, stop=[stop], stream=True) if c.choices]
    assert "".join(pieces) == stopped.text


def test_logprobs_of_prompt_and_output(client: openai.OpenAI) -> None:
    answer = complete(client, prompt="Hello", echo=True, logprobs=2, max_tokens=3).choices[0]
    assert answer.logprobs.tokens[:5] == list("Hello") and len(answer.logprobs.tokens) == 8
    assert answer.logprobs.token_logprobs[0] is None
    # Greedy: what was chosen is the likeliest.
    for chosen, top in zip(answer.logprobs.token_logprobs[5:], answer.logprobs.top_logprobs[5:], strict=True):
        assert chosen == max(top.values())


def test_native_generate(server: Server, client: openai.OpenAI) -> None:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 16, "temperature": 0}}
    native = server.post("/generate", json=body).json()
    assert native["text"] == complete(client).choices[0].text
    assert native["meta_info"]["completion_tokens"] == 16


def test_tokens_there_and_back(server: Server) -> None:
    tokens = server.post("/tokenize", json={"prompt": "Grüße 👋"}).json()["tokens"]
    back = server.post("/detokenize", json={"tokens": tokens}).json()
    assert back["prompt"] == "Grüße 👋"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5, 9999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 100_000}, "n"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_bad_input_is_named_and_harms_nobody(server: Server, fields: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 4} | fields
    answer = server.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param), answer.text
    assert server.health().status_code == 200


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_not_json(server: Server, body: bytes) -> None:
    answer = server.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_unknown_model_and_path(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nothing-like-it"):
        complete(client, model="nothing-like-it")
    assert server.get("/v1/nowhere").status_code == 404


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_has_its_pages_back(server: Server, stream: bool) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3500, "ignore_eos": True, "stream": stream}
    with closing(HTTPConnection(server.url.removeprefix("http://"), timeout=SECONDS)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), JSON)
        server.wait_until_running(1)
    server.wait_until_running(0)


def counted(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_nothing_is_left_when_all_were_broken_off(server: Server) -> None:
    aborts = 'sapwood_finished_total{reason="abort"}'
    before, body = counted(server, aborts), {"model": "tiny", "prompt": PROMPT, "max_tokens": 3500, "ignore_eos": True}
    with ExitStack() as stack:
        for stream in (True, False, True):
            connection = stack.enter_context(
                closing(HTTPConnection(server.url.removeprefix("http://"), timeout=SECONDS))
            )
            connection.request("POST", "/v1/completions", json.dumps(body | {"stream": stream}), JSON)
        server.wait_until_running(3)
    server.wait_until_running(0)
    eventually(lambda: counted(server, aborts) == before + 3)
    eventually(lambda: not counted(server, "sapwood_running") and not counted(server, "sapwood_waiting"))
    assert "nan" not in server.get("/metrics").text.lower()


def test_metrics_tell_what_happened(server: Server, client: openai.OpenAI) -> None:
    complete(client)
    text = server.get("/metrics").text
    for name in (
        "sapwood_prompt_tokens_total",
        "sapwood_cached_prompt_tokens_total",
        "sapwood_time_to_first_token_seconds_bucket",
    ):
        assert name in text, name


TRIES = 50
"""A request may have ended before the test gets to it."""


def test_who_is_paused_goes_on_and_who_comes_waits(client: openai.OpenAI, server: Server) -> None:
    """What was said before and after is what is said without a pause, whether its pages were kept or not."""
    free = complete(client, max_tokens=400).choices[0].text
    for mode in ("in_place", "retract"):
        for _ in range(TRIES):
            stream = complete(client, max_tokens=400, stream=True)
            text = next(stream).choices[0].text
            server.post("/pause_generation", json={"mode": mode}).raise_for_status()
            (state,) = server.get("/get_internal_state").json()
            if state["running"] or state["waiting"]:
                break
            server.post("/continue_generation").raise_for_status()
        with futures.ThreadPoolExecutor(1) as pool:
            late = pool.submit(complete, client, max_tokens=2)
            eventually(lambda: server.health().json().get("paused"))
            assert server.get("/is_paused").json() == {"is_paused": True}
            assert not late.done() and server.get("/health_generate").status_code == 503
            server.post("/continue_generation").raise_for_status()
            assert text + "".join(chunk.choices[0].text for chunk in stream) == free and late.result().choices[0].text
    assert server.get("/health_generate").status_code == 200
    eventually(lambda: "paused" not in server.health().json())


def test_a_request_is_aborted_by_its_name(server: Server) -> None:
    body = {"text": "x", "rid": "mine", "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    with futures.ThreadPoolExecutor(1) as pool:
        for _ in range(TRIES):
            asked = pool.submit(server.post, "/generate", json=body)
            while not (server.post("/abort_request", json={"rid": "mine"}).json()["aborted"] or asked.done()):
                pass
            ended = asked.result().json()["meta_info"]["finish_reason"]["type"]
            if ended == "abort":
                break
    assert ended == "abort"
    server.wait_until_running(0)
