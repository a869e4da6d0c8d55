"""How conversations become prompts, as clients send them: each as transformers writes it, where it takes them."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.base.errors import RequestError
from sapwood.text.order import Message, ordered
from sapwood.text.template import ChatTemplate
from tests.text.styles import CHATML, GEMMA

STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
KNOWS_DEVELOPER = "{% for m in messages %}{% if m.role == 'developer' %}<dev>{{ m.content }}</dev>{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
LOOP = "{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}{% endfor %}{% endif %}"
PARTS = {
    "attribute": "{% for m in messages %}{% set c = m.content %}" + LOOP + "{% endfor %}",
    "get": "{% for m in messages %}{% set c = m.get('content') %}" + LOOP + "{% endfor %}",
    "macro": "{% macro say(c) %}" + LOOP + "{% endmacro %}{% for m in messages %}{{ say(m.content) }}{% endfor %}",
    "filter": "{% for m in messages %}{{ m.content if m.content is string else m.content|map(attribute='text')|join('') }}{% endfor %}",
    "index": "{% for m in messages %}{{ m.content[0].text }}{{ m.content[1].text }}{% endfor %}",
}
Messages = list[dict[str, Any]]


def render(template: str, messages: Messages, **options: Any) -> str:
    return ChatTemplate({"default": template}, {}).render(messages, add_generation_prompt=False, **options)


def reference(template: str, messages: Messages, **options: Any) -> str:
    jinja = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
    found, _ = jinja.render_jinja_template([messages], chat_template=template, **options)
    return str(found[0])


def asked(content: Any) -> Messages:
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]


def test_parts_that_go_on() -> None:
    content = [{"type": "text", "text": "One "}, {"type": "text", "text": "two "}]
    assert render(CHATML, asked(content), continue_final=True).endswith("One \ntwo ")
    assert render(GEMMA, asked(content), continue_final=True).endswith("<start_of_turn>model\nOnetwo")


def test_a_template_that_drops_the_last_message() -> None:
    with pytest.raises(RequestError, match="the chat template prints") as caught:
        render("{{ messages[0].content }}", asked("b"), continue_final=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("name", PARTS)
def test_templates_that_take_parts_get_them(name: str) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]
    assert render(PARTS[name], parts) == reference(PARTS[name], parts) == "AB"


def test_templates_that_print_content_get_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]
    for template in (CHATML, "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"):
        assert "A\\nB" in render(template, parts) or "A\nB" in render(template, parts)


def test_parts_by_role() -> None:
    """As in Llama 3.2: the user's may be parts, the assistant's are printed as they are."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' and m.content is not string %}{% for p in m.content %}<{{ p.text }}>"
        "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    two = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert render(template, [{"role": "user", "content": two}, {"role": "assistant", "content": two}]) == "<A><B>A\nB"


@pytest.mark.parametrize("calls", [[], None])
def test_no_calls_are_no_key(calls: Any) -> None:
    template = "{% for m in messages %}{{ 'call' if 'tool_calls' in m else m.content }};{% endfor %}"
    message = {"role": "assistant", "content": "b", "tool_calls": calls}
    assert render(template, [{"role": "user", "content": "a"}, message]) == "a;b;"


@pytest.mark.parametrize("given", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_thoughts_have_each_name(given: str, read: str) -> None:
    template = (
        "{% for m in messages %}{% if m." + read + " %}<{{ m." + read + " }}>{% endif %}{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A", given: "why"}]
    assert render(template, messages) == "q<why>A"


def test_what_else_a_message_says_reaches_the_template() -> None:
    template = "{% for m in messages %}{{ m.content }}{% if not m.prefix %}<end>{% endif %}{% endfor %}"
    assert render(template, [{"role": "assistant", "content": "A", "prefix": True}]) == "A"


def test_developers() -> None:
    said = [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]
    assert render(KNOWS_DEVELOPER, said) == "<dev>x</dev>[user]y"
    assert render(STRICT, said) == "[system]x[user]y"


def test_one_first_system_message_and_later_ones_in_their_places_where_the_template_wants_that() -> None:
    said = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {"role": "user", "content": "y"},
        {"role": "system", "content": "later"},
    ]
    assert render(STRICT, said) == "[system]s\n\nd[user]y\n\nlater"
    lenient = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert render(lenient, said) == "[system]s[system]d[user]y[system]later"


S, U, A, T = ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([U, S], [("user", "u\n\ns")]),
        ([U, A, S], [U, A, ("user", "s")]),
        ([U, A, S, U], [U, A, ("user", "s\n\nu")]),
        ([U, A, S, S, U, A], [U, A, ("user", "s\n\ns\n\nu"), A]),
        ([S, U, A, T, S, A, T, S], [S, U, A, ("tool", "t\n\ns"), A, ("tool", "t\n\ns")]),
        ([U, A, S, A], [U, A, ("user", "s"), A]),
        ([U, S, U], [("user", "u\n\ns"), U]),
    ],
)
def test_what_stands_before_a_later_system_message_stays_as_the_conversation_grows(said: Any, told: Any) -> None:
    def messages(pairs: Any) -> list[Message]:
        return [{"role": role, "content": content} for role, content in pairs]

    assert ordered(messages(said)) == messages(told)
    for end in range(1, len(said)):
        begun = ordered(messages(said[:end]))
        assert begun[:-1] == messages(told)[: len(begun) - 1], "only the last message may go on"
        assert messages(told)[len(begun) - 1]["content"].startswith(begun[-1]["content"])


def test_parts_stay_parts() -> None:
    parts = [{"type": "text", "text": "u"}]
    late = {"role": "system", "content": "s"}
    assert ordered([{"role": "user", "content": parts}, late]) == [
        {"role": "user", "content": [*parts, {"type": "text", "text": "s"}]}
    ]


@pytest.mark.parametrize("name", ["self", "context", "environment", "loop", "caller", "args", "kwargs"])
def test_arguments_of_any_name_are_taken(name: str) -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "a"}], extra={name: 1}) == "a"
