"""Stop strings that hold names of special tokens, on every route."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

OPENAI = {"max_tokens": 50, "ignore_eos": True}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": OPENAI | {"prompt": "x"},
    "/v1/chat/completions": OPENAI | {"messages": [{"role": "user", "content": "x"}]},
    "/generate": {"text": "x", "sampling_params": {"max_new_tokens": 50, "ignore_eos": True}},
}


def told(answer: dict[str, Any]) -> tuple[str, str | None, Any]:
    """The text, why it ended and at what, of a whole answer or a chunk."""
    if "meta_info" in answer:
        finish = answer["meta_info"]["finish_reason"] or {}
        return answer["text"], finish.get("type"), finish.get("matched")
    (choice,) = answer["choices"]
    said = choice.get("message") or choice.get("delta") or choice
    return said.get("content") or said.get("text") or "", choice["finish_reason"], choice.get("stop_reason")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(
    ("stop", "text_", "matched"),
    [
        ("<|im_end|>", "The cat", "<|im_end|>"),
        ("<|im_end|>\n", "The cat", "<|im_end|>\n"),
        (["zzz", "cat<|im_end|>"], "The ", "cat<|im_end|>"),
        ("<|im_end|>sat", "The cat\nsat", None),
    ],
)
async def test_a_special_token_ends_the_output(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    text: TextModel,
    route: str,
    chunk: int,
    stop: str | list[str],
    text_: str,
    matched: str | None,
) -> None:
    tokens = text.encode("The cat<|im_end|>\nsat")
    engine.answer, engine.chunk = lambda prompt, params: tokens, chunk
    body = json.loads(json.dumps(ROUTES[route]))
    fields = body.get("sampling_params", body)
    fields["stop"] = stop
    fields["max_new_tokens" if "sampling_params" in body else "max_tokens"] = len(tokens)
    wanted = (text_, "stop" if matched else "length", matched)
    answer = await http.post(route, json=body)
    assert answer.status_code == 200, answer.text
    assert told(answer.json()) == wanted
    streamed = await http.post(route, json=body | {"stream": True})
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: {")]
    parts = [told(json.loads(line)) for line in lines]
    whole = parts[-1][0] if route == "/generate" else "".join(part[0] for part in parts)
    assert (whole, *parts[-1][1:]) == wanted
