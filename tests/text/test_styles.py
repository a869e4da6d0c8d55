"""Conversations in the styles of the families' templates, against what transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sapwood.text.template import ChatTemplate
from tests.text.styles import CHATML, GEMMA, HARMONY, KIMI, LLAMA3, MISTRAL, QWEN, STYLES

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TRIMMING = ("llama3", "gemma", "qwen")
Messages = list[dict[str, Any]]
Write = Callable[..., str]


@pytest.fixture(scope="module")
def theirs() -> Write:
    """What transformers writes."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")

    def write(source: str, messages: Messages, **options: Any) -> str:
        said = [module._normalize_chat_messages(messages)]
        return str(module.render_jinja_template(said, chat_template=source, **NAMES | options)[0][0])

    return write


def ours(source: str, messages: Messages, *, goes_on: bool = False) -> str:
    chat = ChatTemplate({"default": source}, NAMES)
    return chat.render(messages, add_generation_prompt=False, continue_final=goes_on)


def parts(*texts: str) -> Messages:
    return [{"type": "text", "text": text} for text in texts]


def begun(content: Any, **more: Any) -> Messages:
    return [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": content, **more}]


def told(*pairs: tuple[str, str]) -> Messages:
    return [{"role": role, "content": text} for role, text in pairs]


# Texts that stand again in what templates write behind a message, and white space at either end.
TEXTS = [
    "The cat", "end", "e", "id", "text", "|", "<", ">", "<|", "</s", "[", "im_", "end_of_turn", "assistant", "model", "\\n",
    "The answer is ", "```json\n", "a\n\n", "a \t", " a", "\n\na", "1", '{"x": "', "{{ m }}", "é 日本 😀", "<think>\nfirst",
    "Say it.",
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_message_goes_on(style: str, text: str, theirs: Write) -> None:
    found = ours(STYLES[style], begun(text), goes_on=True)
    assert found == theirs(STYLES[style], begun(text), continue_final_message=True)
    assert found.endswith(text.strip() if style in TRIMMING else text)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", ["", " ", "\n", "\n\n"])
def test_an_empty_text_opens_the_turn(style: str, text: str) -> None:
    opened = ours(STYLES[style], begun("1"), goes_on=True).removesuffix("1")
    assert ours(STYLES[style], begun(text), goes_on=True) == opened + text * (style not in TRIMMING)


@pytest.mark.parametrize("style", ["mistral", "gemma", "qwen", "kimi"])
@pytest.mark.parametrize("texts", [("one",), ("a", "end"), ("one ", "two ")])
def test_parts_go_on(style: str, texts: tuple[str, ...]) -> None:
    found = ours(STYLES[style], begun(parts(*texts)), goes_on=True)
    assert ours(STYLES[style], begun(parts(*texts))).startswith(found)
    assert found.endswith(texts[-1].strip() if style in TRIMMING else texts[-1])


def test_thoughts_stay_before_a_text_that_goes_on() -> None:
    assert ours(QWEN, begun("So", reasoning="why"), goes_on=True).endswith("<think>\nwhy\n</think>\n\nSo")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("nothing", [[], None], ids=str)
def test_no_call_is_no_call(style: str, nothing: Any) -> None:
    assert ours(STYLES[style], begun("x", tool_calls=nothing)) == ours(STYLES[style], begun("x"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("more", [{}, {"thinking": "b"}, {"reasoning": "c"}, {"reasoning_content": None}], ids=str)
def test_thoughts_have_three_names(style: str, name: str, more: dict[str, Any], theirs: Write) -> None:
    messages = [*begun("x", **{name: "a"} | more), {"role": "user", "content": "y"}]
    assert ours(STYLES[style], messages) == theirs(STYLES[style], messages)


SEVERAL = [
    ("system", "one"), ("developer", "two"), ("user", "a"), ("assistant", "b"), ("system", "three"), ("user", "c"),
]  # fmt: skip


@pytest.mark.parametrize("style", ["mistral", "qwen"])
def test_strict_templates_get_one_system_message(style: str) -> None:
    as_one = told(("system", "one\n\ntwo"), ("user", "a"), ("assistant", "b"), ("user", "three\n\nc"))
    assert ours(STYLES[style], told(*SEVERAL)) == ours(STYLES[style], as_one)
    late = told(("user", "a"), ("developer", "one"))
    assert ours(STYLES[style], late) == ours(STYLES[style], told(("user", "a\n\none")))


@pytest.mark.parametrize("source", [CHATML, LLAMA3, KIMI], ids=["chatml", "llama3", "kimi"])
def test_other_templates_get_each_where_it_stands(source: str, theirs: Write) -> None:
    as_system = [("system" if role == "developer" else role, text) for role, text in SEVERAL]
    assert ours(source, told(*SEVERAL)) == theirs(source, told(*as_system))


@pytest.mark.parametrize("source", [GEMMA, HARMONY], ids=["gemma", "harmony"])
def test_developers_are_left_to_templates_that_know_them(source: str, theirs: Write) -> None:
    messages = told(("developer", "one"), ("user", "a"))
    assert ours(source, messages) == theirs(source, messages)


@pytest.mark.parametrize("source", [CHATML, CHATML + "{# 'developer' #}", LLAMA3, QWEN, MISTRAL, KIMI])
def test_developers_are_the_system_to_all_others(source: str, theirs: Write) -> None:
    messages = told(("developer", "one"), ("user", "a"))
    assert ours(source, messages) == theirs(source, told(("system", "one"), ("user", "a")))


LOOP = "{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}{% endfor %}{% endif %}"
WALKS = {
    "attribute": "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}",
    "item": "{% for m in messages %}{% set c = m['content'] %}" + LOOP + "{% endfor %}",
    "argument": "{% macro f(c) %}" + LOOP + "{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "select": "{% for m in messages %}{{ m.content if m.content is string else "
    "(m.content | selectattr('type', 'equalto', 'text') | list)[-1].text ~ m.content[0].text }}{% endfor %}",
    "items": "{% for m in messages %}{% for k, v in m.items() %}{% if k == 'content' %}{% set c = v %}" + LOOP + "{% endif %}"
    "{% endfor %}{% endfor %}",
    "loop variable": "{% for c in messages | map(attribute='content') %}" + LOOP + "{% endfor %}",
    "namespace": "{% set n = namespace() %}{% for m in messages %}{% set n.c = m.content %}{% set c = n.c %}" + LOOP + "{% endfor %}",
    "first of all": "{% set c = (messages | first).content %}" + LOOP,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "qwen": QWEN,
    "kimi": KIMI,
}  # fmt: skip


@pytest.mark.parametrize("way", WALKS)
def test_parts_reach_templates_that_take_them(way: str, theirs: Write) -> None:
    messages = [{"role": "user", "content": parts("A", "B")}]
    assert ours(WALKS[way], messages) == theirs(WALKS[way], messages)


def test_what_is_taken_depends_on_the_role() -> None:
    messages: Messages = [
        {"role": "system", "content": parts("A", "B")},
        {"role": "user", "content": parts("C", "D")},
        {"role": "assistant", "content": parts("E", "F")},
    ]
    assert ours(MISTRAL, messages) == "<s>[SYSTEM_PROMPT]A\nB[/SYSTEM_PROMPT][INST]CD[/INST]E\nF</s>"
    assert "system\nA\nB<end_of_turn>" in ours(GEMMA, messages)
    assert "user\nCD<end_of_turn>" in ours(GEMMA, messages)
