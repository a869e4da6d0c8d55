"""What an `LLM` is asked: a prompt as tokens, from a text or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sapwood.text import TextModel
from sapwood.text.parsers import Said

Prompt = str | list[int]
Message = dict[str, Any]


class Asked(NamedTuple):
    """A prompt, special tokens that structure the answer and so are part of its text, and what reads that text."""

    tokens: list[int]
    shown: frozenset[int] = frozenset()
    read: Callable[[str], Said] | None = None


def of_prompt(text: TextModel, prompt: Prompt) -> Asked:
    return Asked(text.encode(prompt) if isinstance(prompt, str) else list(prompt))


def of_chat(
    text: TextModel,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    *,
    continues: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Asked:
    prompt = text.render(
        list(messages),
        tools=tools,
        add_generation_prompt=not continues,
        continue_final=continues,
        template_kwargs=extra,
    )
    open = text.thoughts(prompt, continues=continues) == "open"
    return Asked(
        text.special_text(prompt, param="messages"),
        text.markers(calls=bool(tools)),
        lambda answer: text.read(answer, tools, open=open),
    )
