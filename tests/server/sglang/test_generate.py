from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

ANSWER = "The cat sat on the mat — naïvely."


async def generate(http: httpx.AsyncClient, **body: Any) -> Any:
    reply = await http.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_one_text(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    engine.cached = 1
    answer = await generate(http, text="the cat", rid="mine")
    ids = [*text.encode(ANSWER), *text.eos_ids]
    assert answer["text"] == ANSWER
    assert answer["output_ids"] == ids
    meta = answer["meta_info"]
    assert (meta["id"], meta["prompt_tokens"], meta["cached_tokens"]) == ("mine", len(text.encode("the cat")), 1)
    assert meta["completion_tokens"] == len(ids)
    assert meta["finish_reason"] == {"type": "stop", "matched": text.eos_ids[0]}
    assert "input_token_logprobs" not in meta
    assert engine.asked[0].params.max_tokens == 128


async def test_parameters(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    sampling = {
        "max_new_tokens": 4,
        "min_new_tokens": 1,
        "temperature": 0,
        "top_k": -1,
        "stop": "zzz",
        "stop_token_ids": [3],
        "frequency_penalty": 0.5,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "sampling_seed": 5,
    }
    answer = await generate(http, input_ids=[5, 6], sampling_params=sampling)
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    params = engine.asked[0].params
    assert (params.max_tokens, params.min_tokens, params.temperature, params.top_k) == (4, 1, 0, -1)
    assert (params.stop, params.stop_token_ids, params.frequency_penalty) == (("zzz",), (3,), 0.5)
    assert (params.ignore_eos, params.skip_special_tokens, params.include_stop, params.seed) == (True, False, True, 5)


async def test_batches(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    engine.answer = lambda tokens, params: text.encode(text.decode(tokens) * 2)
    many = [{"max_new_tokens": 1}, {"max_new_tokens": 2}]
    answers = await generate(http, text=["a", "b"], sampling_params=many)
    assert [answer["text"] for answer in answers] == ["a", "bb"]
    assert len(await generate(http, text="a", sampling_params={"n": 3, "max_new_tokens": 1})) == 3
    assert len(await generate(http, input_ids=[[5], [6]], sampling_params={"max_new_tokens": 1})) == 2
    assert isinstance(await generate(http, text=["a"]), list)


async def test_logprobs(http: httpx.AsyncClient, text: TextModel) -> None:
    answer = await generate(
        http,
        input_ids=[20, 30, 40],
        sampling_params={"max_new_tokens": 2},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=1,
        return_text_in_logprobs=True,
    )
    meta = answer["meta_info"]
    shown = [text.token_text(id) for id in (20, 30, 40)]
    assert meta["input_token_logprobs"] == [[None, 20, shown[0]], [-0.3, 30, shown[1]], [-0.4, 40, shown[2]]]
    assert meta["input_top_logprobs"][0] is None
    assert meta["input_top_logprobs"][1] == [[-10.0, 10, text.token_text(10)]]
    assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
    assert len(meta["output_top_logprobs"]) == 2


async def test_logprobs_of_named_tokens(http: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"input_ids": [[20, 30], [40]], "sampling_params": {"max_new_tokens": 1}}
    fields |= {"return_logprob": True, "logprob_start_len": 0}
    first, second = await generate(http, **fields, token_ids_logprob=[7, 5])
    assert first["meta_info"]["input_token_ids_logprobs"] == [None, [[-7.0, 7, None], [-5.0, 5, None]]]
    assert second["meta_info"]["output_token_ids_logprobs"] == [[[-7.0, 7, None], [-5.0, 5, None]]]
    first, second = await generate(http, **fields, token_ids_logprob=[[7], []])
    assert first["meta_info"]["output_token_ids_logprobs"] == [[[-7.0, 7, None]]]
    assert "output_token_ids_logprobs" not in second["meta_info"]


@pytest.mark.parametrize(("start", "positions"), [(-1, []), (1, [30, 40]), (2, [40])])
async def test_where_input_logprobs_start(http: httpx.AsyncClient, start: int, positions: list[int]) -> None:
    answer = await generate(
        http,
        input_ids=[20, 30, 40],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=start,
    )
    assert [entry[1] for entry in answer["meta_info"]["input_token_logprobs"]] == positions
    assert (answer["text"], answer["meta_info"]["completion_tokens"]) == ("", 0)


async def test_stream_holds_the_text_so_far(http: httpx.AsyncClient) -> None:
    reply = await http.post("/generate", json={"text": "x", "stream": True, "return_logprob": True})
    *events, last = reply.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all(ANSWER.startswith(event["text"]) for event in told)
    assert told[-1]["text"] == ANSWER
    assert [event["meta_info"]["finish_reason"] is None for event in told] == [True] * (len(told) - 1) + [False]
    assert len(told[-1]["meta_info"]["output_token_logprobs"]) == len(told[-1]["output_ids"])


async def test_stream_of_increments(engine: FakeEngine, text: TextModel) -> None:
    """What is new each time; the prompt's logprobs once."""
    config = Config(server=ServerConfig(incremental_stream=True))
    app = create_app(engine, text, config, MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        body = {"input_ids": [20, 30], "stream": True, "return_logprob": True, "logprob_start_len": 0}
        reply = await http.post("/generate", json=body | {"top_logprobs_num": 1})
    told = [json.loads(event.removeprefix("data: ")) for event in reply.text.split("\n\n")[:-2]]
    assert len(told) > 2 and "".join(event["text"] for event in told) == ANSWER
    metas = [event["meta_info"] for event in told]
    assert [meta["completion_tokens"] for meta in metas] == list(range(1, len(told) + 1))
    assert all(len(event["output_ids"]) == 1 for event in told)
    assert all(len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 1 for meta in metas)
    assert ["input_token_logprobs" in meta for meta in metas] == [True] + [False] * (len(told) - 1)
    await app.state.front.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("named", "aborted"), [({"rid": "b_0"}, 1), ({"rid": "b"}, 2), ({"abort_all": True}, 2)])
async def test_aborted_requests_say_what_they_have(
    http: httpx.AsyncClient, engine: FakeEngine, stream: bool, named: dict[str, Any], aborted: int
) -> None:
    engine.hold = asyncio.Event()
    body = {"text": ["x", "y"], "rid": "b", "stream": stream}
    asked = asyncio.create_task(http.post("/generate", json=body))
    await engine.until_running(2)
    assert (await http.post("/abort_request", json={"rid": "another"})).json() == {"aborted": 0}
    assert (await http.post("/abort_request", json=named)).json() == {"aborted": aborted}
    await engine.until_running(2 - aborted)
    assert engine.broken_off == aborted
    engine.hold.set()
    reply = await asked
    events = (
        [json.loads(event.removeprefix("data: ")) for event in reply.text.split("\n\n")[:-2]]
        if stream
        else reply.json()
    )
    ends = {event["meta_info"]["id"]: event["meta_info"]["finish_reason"] for event in events}
    assert ends["b_0"] == {"type": "abort", "message": "The request was aborted."}
    assert ends["b_1"]["type"] == ("abort" if aborted == 2 else "stop")


async def test_rids_are_each_prompts_own(http: httpx.AsyncClient) -> None:
    answers = await generate(http, text=["x", "y"], rid=["one", "two"], sampling_params={"max_new_tokens": 1})
    assert [answer["meta_info"]["id"] for answer in answers] == ["one", "two"]
    assert answers[0]["meta_info"]["weight_version"] == "default"
    wrong = await http.post("/abort_request", json={})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "rid")


async def test_stream_of_a_batch_has_indices(http: httpx.AsyncClient) -> None:
    reply = await http.post("/generate", json={"text": ["x", "y"], "stream": True})
    events = reply.text.removesuffix("\n\n").split("\n\n")[:-1]
    assert {json.loads(event.removeprefix("data: "))["index"] for event in events} == {0, 1}
