"""/generate tells hidden states, logits and experts as arrays in base64."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

BODY = {"text": "hello", "sampling_params": {"max_new_tokens": 4}}
WIDE = {"hidden_states": 8, "logits": 5, "routed_experts": 6}


def read(told: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(b64decode(told["data"]), told["dtype"]).reshape(told["shape"])


@pytest.fixture
def curious(engine: FakeEngine) -> FakeEngine:
    engine.facts = replace(engine.facts, insights=WIDE)
    return engine


async def test_arrays_of_all_positions(http: httpx.AsyncClient, curious: FakeEngine) -> None:
    asked = {"return_hidden_states": True, "return_routed_experts": True, "return_dtype": "float16"}
    reply = (await http.post("/generate", json=BODY | asked)).json()["meta_info"]
    states, experts = read(reply["hidden_states"]), read(reply["routed_experts"])
    assert states.dtype == np.float16 and experts.dtype == np.int32 and "logits" not in reply
    assert states.shape == (reply["completion_tokens"], 8) and experts.shape == (reply["completion_tokens"], 6)
    assert states[:, 0].tolist() == experts[:, 0].tolist() == [0, 1, 2, 3]
    assert "hidden_states" not in (await http.post("/generate", json=BODY)).json()["meta_info"]


async def test_each_prompt_may_want_something_else(http: httpx.AsyncClient, curious: FakeEngine) -> None:
    body = BODY | {"text": ["one", "two"], "return_logits": [False, True]}
    first, second = (one["meta_info"] for one in (await http.post("/generate", json=body)).json())
    assert "logits" not in first and read(second["logits"]).shape == (4, 5)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"return_hidden_states": True, "stream": True}, "return_hidden_states", "cannot be streamed"),
        ({"return_logits": [True]}, "return_logits", "has 1 entries for 2 prompts"),
        ({"return_dtype": "int8"}, "return_dtype", "float16"),
    ],
)
async def test_refused_by_name(
    http: httpx.AsyncClient, curious: FakeEngine, fields: dict[str, Any], param: str, message: str
) -> None:
    reply = await http.post("/generate", json=BODY | {"text": ["one", "two"]} | fields)
    assert reply.status_code == 400
    assert param in reply.text and message in reply.text


async def test_too_much_and_untold(http: httpx.AsyncClient, curious: FakeEngine) -> None:
    curious.facts = replace(curious.facts, insights={"logits": 1 << 26})
    for field, message in (("return_logits", "lower max_new_tokens"), ("return_hidden_states", "generates nothing")):
        reply = await http.post("/generate", json=BODY | {field: True})
        assert reply.status_code == 400 and field in reply.text and message in reply.text


async def test_other_routes_say_where(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    reply = await http.post("/v1/completions", json={"prompt": "hello", "return_hidden_states": True})
    assert reply.status_code == 400 and "/generate" in reply.text
