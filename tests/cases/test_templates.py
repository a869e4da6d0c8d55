"""Chat templates: features that transformers has, and histories as clients send them back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.server import create_app
from sapwood.text import TextModel
from sapwood.text.template import ChatTemplate
from tests.broken import REFUSING
from tests.server.fakes import CHATML, MODEL, FakeEngine, make_text

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TOLD = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "é <b> & 'x' \"y\""},
    {"role": "assistant", "content": "one\ntwo"},
]
FEATURES = {
    "white space around blocks": "{% for m in messages %}\n  {%- if loop.first -%}\n  a\n  {%- endif %}\n    b\n{% endfor %}\n",
    "carriage returns": "{% for m in messages %}\r\n{{ m.role }}\r\n{% endfor %}\r\n",
    "a namespace": "{% set n = namespace(last=0) %}{% for m in messages %}{% set n.last = loop.index %}{% endfor %}{{ n.last }}",
    "a loop that is left": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "a turn that is skipped": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "a marked answer": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "JSON of any text": "{{ messages | tojson }}{{ messages | tojson(indent=4) }}",
    "JSON in other words": "{{ messages[1] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "slices": "{{ messages[1:] | length }}{{ messages[-1].content }}{{ messages[::-1][0].role }}",
    "methods of texts": "{{ messages[2].content.split('\\n')[-1] | trim | upper }}{{ messages[0].content.startswith('be') }}",
    "items of a mapping": "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}",
    "a macro with a default": "{% macro say(m, end='.') %}{{ m.role }}{{ end }}{% endmacro %}{{ say(messages[0]) }}{{ say(messages[1], '!') }}",
    "a block that is set": "{% set all %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}[{{ all }}]",
    "tests": "{{ messages is sequence }}{{ messages[0] is mapping }}{{ tools is none }}{{ nothing is defined }}",
    "what is not escaped": "{{ messages[1].content }}{{ messages[1].content | e }}",
    "one of two": "{{ messages[0].name or 'nobody' }}{{ messages[0].get('name', 'nobody') }}{{ 'a' if add_generation_prompt else 'b' }}",
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_those_of_transformers(name: str) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source = FEATURES[name]
    (wanted,), _ = theirs([TOLD], chat_template=source, add_generation_prompt=True)
    assert ChatTemplate({"default": source}, {}).render(TOLD, add_generation_prompt=True) == wanted


HISTORIES: dict[str, dict[str, Any]] = {
    "no content": {"role": "assistant"},
    "null content": {"role": "assistant", "content": None},
    "an answer as it was received": {
        "role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": [], "reasoning_content": None,
    },
    "parts with hints for a cache": {
        "role": "assistant", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    },
    "fields that nobody knows": {"role": "assistant", "content": "b", "id": "msg_1", "timestamp": 5, "model": "other"},
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
async def test_answers_are_taken_back_as_they_were_given(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, name: str
) -> None:
    said = [{"role": "user", "content": "a"}, HISTORIES[name], {"role": "user", "content": "c"}]
    reply = await http.post(CHAT, json={"messages": said})
    assert reply.status_code == 200, reply.text
    turn = "b" if "b" in str(HISTORIES[name].get("content")) else ""
    prompt = text.decode(engine.asked[0].tokens, skip_special=False)
    assert prompt.split("<|im_end|>\n")[1] == f"<|im_start|>assistant\n{turn}"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_calls_has_no_list_of_them(http: httpx.AsyncClient, stream: bool) -> None:
    reply = await http.post(CHAT, json={"messages": TOLD[:2], "max_tokens": 3, "stream": stream})
    assert reply.status_code == 200 and "tool_calls" not in reply.text


async def test_names_of_special_tokens_in_a_message_are_those_tokens(
    http: httpx.AsyncClient, engine: FakeEngine, text: TextModel
) -> None:
    """As transformers has it; what must not act so is for the client to take out."""
    await http.post(CHAT, json={"messages": [{"role": "user", "content": "A<|im_end|>B"}]})
    end = text.special_text("<|im_end|>")
    assert len(end) == 1 and engine.asked[0].tokens.count(end[0]) == 2


async def test_the_template_writes_the_only_beginning(tmp_path: Path) -> None:
    """Though the tokenizer would put one in front of any other text."""
    make_text(tmp_path, "{{ bos_token }}" + CHATML)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text().replace("{", '{"add_bos_token": true, ', 1))
    from sapwood.hub.files import ModelFiles

    text = TextModel.load(ModelFiles(MODEL, tmp_path, "hf", {}, {}))
    engine = FakeEngine(text)
    transport = httpx.ASGITransport(app=create_app(engine, text, Config(), MODEL))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.post(CHAT, json={"messages": TOLD[1:2]})
        await http.post("/v1/completions", json={"prompt": "a"})
        empty = await http.post("/v1/completions", json={"prompt": ""})
    chat, plain, nothing = (asked.tokens for asked in engine.asked)
    assert (chat.count(text.bos_id), plain.count(text.bos_id), nothing) == (1, 1, [text.bos_id])
    assert empty.status_code == 200, "a beginning is something to go on from"


@pytest.mark.parametrize(("source", "says"), REFUSING.values(), ids=REFUSING)
async def test_a_model_whose_template_fails_still_completes(tmp_path: Path, source: str, says: str) -> None:
    text = make_text(tmp_path, source)
    transport = httpx.ASGITransport(app=create_app(FakeEngine(text), text, Config(), MODEL))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for path in (CHAT, "/tokenize"):
            reply = await http.post(path, json={"messages": TOLD})
            assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages"
            assert re.search(says, reply.json()["error"]["message"])
        assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 200
