"""Chat templates: what transformers would render, and what a hostile one cannot do."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError, ModelError, RequestError
from sapwood.text import template as template_module
from sapwood.text.template import ChatTemplate, find_templates, given_template
from tests.broken import NO_JINJA, REFUSING

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
    named = {name: kwargs.pop(name) for name in ("tools", "add_generation_prompt", "continue_final") if name in kwargs}
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(messages or USER, **named, extra=kwargs)


def test_jinja_is_set_up_as_transformers_does() -> None:
    assert render("{{ bos_token }}\n  {% if true %}\n  x\n  {% endif %}\ny") == "<s>\n  x\ny"
    assert render("{{ {'b': '<é&>', 'a': 1} | tojson }}") == '{"b": "<é&>", "a": 1}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert (
        render(
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        )
        == "02"
    )
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hi"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ documents is none }}{{ tools is none }}{{ unheard_of is defined }}") == "TrueTrueFalse"
    assert render("{{ add_generation_prompt }} {{ enable_thinking }}", enable_thinking=False) == "True False"


def test_loops_know_where_they_are() -> None:
    source = "{% for m in items %}{{ loop.index0 }}/{{ loop.length }}{{ m }}{{ loop.previtem }}{% if not loop.last %},{% endif %}{% endfor %}"
    assert render(source, items=["a", "b"]) == "0/2a,1/2ba"
    assert render("{% for k, v in d.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", d={}) == "none"
    assert (
        render("{% for n in t recursive %}{{ n.v }}{{ loop(n.c) }}{% endfor %}", t=[{"v": 1, "c": [{"v": 2, "c": []}]}])
        == "12"
    )


def test_the_templates_own_words_reach_the_client() -> None:
    with pytest.raises(RequestError, match="Only user and assistant, please") as caught:
        render("{{ raise_exception('Only user and assistant, please') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum(n=5) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 9 ** 99999999 }}",
    ],
)
def test_a_template_cannot_break_out(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    ],
)
def test_an_endless_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.05)
    with pytest.raises(RequestError, match="ran for more than"):
        render(source)


def test_parts_are_joined_where_the_template_wants_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert render("{{ messages[0].content }}", parts) == "one\ntwo"
    walks = "{% for p in messages[0]['content'] %}[{{ p.text }}]{% endfor %}"
    assert render(walks, parts) == "[one][two]"
    named = "{% set c = messages[0].content %}{% for p in c %}[{{ p['text'] }}]{% endfor %}"
    assert render(named, parts) == "[one][two]"


def test_messages_are_normalised_in_a_copy() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    odd = {"type": "function", "function": {"name": "g", "arguments": "not json"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call, odd]}]
    before = json.dumps(messages)
    source = "{{ messages[0].content + '' }}{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    assert render(source, messages) == '{"x": 1}"not json"'
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("hi", r"messages\[0\] must be an object"),
        ({"content": "hi"}, r"messages\[0\] must be an object with a role"),
        ({"role": "user", "content": 5}, r"messages\[0\]\.content must be"),
        ({"role": "user", "content": ["hi"]}, r"type 'str'; this model takes text only"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"type 'image_url'; this model takes text only"),
    ],
)
def test_messages_that_no_template_takes(message: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        render("{{ messages }}", [message])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", ["messages", "bos_token"])
def test_arguments_cannot_replace_what_the_engine_sets(name: str) -> None:
    chat = ChatTemplate({"default": ""}, {"bos_token": "<s>"})
    with pytest.raises(RequestError, match=name) as caught:
        chat.render(USER, extra={name: []})
    assert caught.value.param == "chat_template_kwargs"


def test_named_templates() -> None:
    chat = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert chat.render(USER) == "plain"
    assert chat.render(USER, tools=[]) == "plain"
    assert chat.render(USER, tools=[{"type": "function"}]) == "tools"


def test_where_templates_are_found(tmp_path: Path) -> None:
    listed = {"chat_template": [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "t"}]}
    assert find_templates(tmp_path, {}) == {}
    assert find_templates(tmp_path, {"chat_template": "config"}) == {"default": "config"}
    assert find_templates(tmp_path, listed) == {"default": "config", "tool_use": "t"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert find_templates(tmp_path, listed) == {"default": "json"}
    (tmp_path / "chat_template.jinja").write_text("jinja")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert find_templates(tmp_path, listed) == {"rag": "r", "default": "jinja"}
    with pytest.raises(ModelError, match="chat_template in"):
        find_templates(None, {"chat_template": 5})
    with pytest.raises(ModelError, match="chat_template in"):
        find_templates(None, {"chat_template": [{"name": "default"}]})


def test_a_template_that_the_user_gives(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("from a file")
    assert given_template(str(tmp_path / "mine.jinja")) == {"default": "from a file"}
    assert given_template("{{ messages }}") == {"default": "{{ messages }}"}
    with pytest.raises(ConfigError, match="neither a Jinja text nor a file"):
        given_template("no-such.jinja")


@pytest.mark.parametrize(("source", "says"), NO_JINJA.values(), ids=NO_JINJA)
def test_a_template_that_is_no_jinja(source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        render(source)


@pytest.mark.parametrize(("source", "says"), REFUSING.values(), ids=REFUSING)
def test_a_template_that_always_fails(source: str, says: str) -> None:
    chat = ChatTemplate({"default": source}, {})
    with pytest.raises(RequestError, match=says) as caught:
        chat.render(USER)
    assert caught.value.param == "messages"
