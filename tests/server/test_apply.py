"""/v1/apply, and chats that ask for the same: by lines where these tell, else by the model, with the file as the prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood.base.errors import ConfigError
from sapwood.config.flags import from_options
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

CODE = "a = 1\nb = 2\nc = 3\n"
CLEAR = "# ... existing code ...\nb = 2\nd = f(x)\nc = 3\n"
MERGED = "a = 1\nb = 2\nd = f(x)\nc = 3\n"
UNCLEAR = "# ... existing code ...\nd = f(x)\n# ... existing code ...\n"
PATH, CHAT = "/v1/apply", "/v1/chat/completions"


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    return FakeEngine(text, max_model_len=4096)


def say(engine: FakeEngine, text: TextModel, answer: str) -> None:
    engine.answer = lambda tokens, params: [*text.encode(answer, add_special=False), text.eos_ids[0]]


async def post(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await http.post(PATH, json={"code": CODE, **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_lines_alone(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    reply = await post(http, update=CLEAR, model="tiny", instruction="add d")
    assert (reply["code"], reply["method"], reply["object"]) == (MERGED, "anchors", "apply")
    assert reply["check"] == {"ok": True, "problems": []} and "unclear" not in reply
    assert reply["usage"]["total_tokens"] == 0 and not engine.asked


async def test_the_model_where_lines_do_not_tell(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    say(engine, text, f"\n{MERGED}</updated-code> and so on")
    reply = await post(http, update=UNCLEAR, instruction="put d behind b")
    assert (reply["code"], reply["method"], reply["check"]) == (MERGED, "model", {"ok": True, "problems": []})
    assert "where in the file" in reply["unclear"]
    (asked,) = engine.asked
    prompt = text.decode(asked.tokens, skip_special=False)
    assert f"<code>\n{CODE}" in prompt and UNCLEAR in prompt and "put d behind b" in prompt
    assert prompt.rstrip().endswith("<updated-code>")
    assert asked.params.prediction == tuple(text.encode(CODE, add_special=False)) and asked.params.temperature == 0
    assert asked.params.max_tokens == sum(len(text.encode(one, add_special=False)) for one in (CODE, UNCLEAR)) + 64
    details = reply["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 4


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("a = 1\nb = 2\nd = f(x)\n</updated-code>", {"lost"}),
        (f"{CODE}</updated-code>", {"missing"}),
        (f"{MERGED}e = 5\n</updated-code>", {"invented"}),
    ],
)
async def test_what_the_model_did_wrong_is_told(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, answer: str, kinds: set[str]
) -> None:
    say(engine, text, answer)
    check = (await post(http, update="# ... existing code ...\nd = f(x)\n# ... existing code ...\n", method="model"))[
        "check"
    ]
    if kinds == {"lost"}:  # the line beside a new one may have been replaced by it
        assert check["ok"] or {one["kind"] for one in check["problems"]} == kinds
    else:
        assert not check["ok"] and {one["kind"] for one in check["problems"]} == kinds


async def test_an_answer_that_is_cut_off_is_not_ok(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel
) -> None:
    say(engine, text, MERGED)
    reply = await post(http, update=UNCLEAR, max_tokens=len(text.encode(MERGED, add_special=False)))
    assert not reply["check"]["ok"]


@pytest.mark.parametrize("given", ["tags", "auto", "file"])
async def test_the_server_is_told_how_to_ask(engine: FakeEngine, text: TextModel, tmp_path: Path, given: str) -> None:
    (tmp_path / "mine").write_text("Code:{code}Snippet:{update}")
    say(engine, text, f"{MERGED}</updated-code>")
    config = from_options({"apply_template": str(tmp_path / "mine") if given == "file" else given})
    app = create_app(engine, text, config, "Fast-Apply-7B")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        await post(http, update=UNCLEAR, instruction="put d behind b")
        chat = f"<instruction>put d behind b</instruction><code>{CODE}</code><update>{UNCLEAR}</update>"
        await http.post(CHAT, json={"messages": [{"role": "user", "content": chat}]})
    await app.state.front.close()
    wanted = f"Code:{CODE}Snippet:{UNCLEAR}"
    if given != "file":
        wanted = f"<instruction>put d behind b</instruction>\n<code>{CODE}</code>\n<update>{UNCLEAR}</update>"
    for asked in engine.asked:
        prompt = text.decode(asked.tokens, skip_special=False)
        assert wanted in prompt and "Merge" not in prompt


def test_a_template_that_cannot_be_used_is_refused_at_start(
    engine: FakeEngine, text: TextModel, tmp_path: Path
) -> None:
    (tmp_path / "none").write_text("Merge {code}.")
    for name, said in (("none", "has no {update}"), ("nowhere", "neither auto nor words nor tags nor a file")):
        config = from_options({"apply_template": str(tmp_path / name)})
        with pytest.raises(ConfigError, match=said):
            create_app(engine, text, config, "tiny")


@pytest.mark.parametrize("update", [CLEAR, UNCLEAR])
async def test_streams(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, update: str) -> None:
    say(engine, text, f"{MERGED}</updated-code>")
    reply = await http.post(PATH, json={"code": CODE, "update": update, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done = reply.text.strip().split("\n\n")
    *chunks, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]" and "".join(chunk["delta"] for chunk in chunks) == MERGED
    assert last["method"] == ("anchors" if update == CLEAR else "model") and last["check"]["ok"] and "usage" in last
    assert {chunk["object"] for chunk in (*chunks, last)} == {"apply.chunk"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"update": UNCLEAR, "method": "anchors"}, "update"),
        ({"update": CLEAR, "method": "guess"}, "method"),
        ({"update": CLEAR, "model": "other"}, "model"),
        ({}, "update"),
        ({"update": UNCLEAR, "temperature": -1}, "temperature"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_named(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    reply = await http.post(PATH, json={"code": CODE, **fields})
    assert reply.status_code in (400, 404) and param in reply.json()["error"]["message"]


def chat(update: str, **fields: Any) -> dict[str, Any]:
    content = f"<instruction>add d</instruction>\n<code>\n{CODE}</code>\n<update>\n{update}</update>"
    return {"messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize("update", [CLEAR, UNCLEAR])
async def test_a_chat_that_is_nothing_but_an_edit(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, update: str
) -> None:
    say(engine, text, f"{MERGED}</updated-code>")
    reply = (await http.post(CHAT, json=chat(update, max_tokens=100))).json()
    assert reply["choices"][0]["message"]["content"] == MERGED and reply["choices"][0]["finish_reason"] == "stop"
    assert len(engine.asked) == (update == UNCLEAR)
    assert all(asked.params.temperature == 0 and asked.params.prediction for asked in engine.asked)
    stream = await http.post(
        CHAT, json=chat(update, max_tokens=100, stream=True, stream_options={"include_usage": True})
    )
    *events, done = stream.text.strip().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == MERGED
    assert done == "data: [DONE]" and chunks[-1]["usage"] is not None
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"


async def test_other_chats_are_chats(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    bodies = [chat(CLEAR) for _ in range(3)]
    bodies[0]["messages"][0]["content"] += " please"
    bodies[1]["messages"].insert(0, {"role": "system", "content": "hi"})
    bodies[2]["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for number, body in enumerate(bodies, 1):
        await http.post(CHAT, json=body)
        assert len(engine.asked) == number and not engine.asked[-1].params.prediction
