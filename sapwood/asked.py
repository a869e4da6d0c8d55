"""What an `LLM` is asked: a prompt as tokens, from a text or a conversation, with the media that stand in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sapwood.base.errors import RequestError
from sapwood.base.media import Media, Span
from sapwood.showing import Message, Showing, Shown, prompt_of, shown_in
from sapwood.text import TextModel
from sapwood.text.parsers import Said

Plain = str | list[int]
Prompt = Plain | Mapping[str, Any]
"""A text, tokens, or either with media (`showing.prompt_of`)."""


class Asked(NamedTuple):
    """A prompt, special tokens that structure the answer and so are part of its text, what reads that text, and what an encoder sees of it."""

    tokens: list[int]
    shown: frozenset[int] = frozenset()
    read: Callable[[str], Said] | None = None
    media: Sequence[Media] = ()
    spans: Sequence[Span] = ()


def of_prompt(text: TextModel, prompt: Prompt, showing: Showing | None = None) -> Asked:
    """Raises RequestError for media where nothing shows them."""
    given, shots = prompt_of(prompt) if isinstance(prompt, Mapping) else (prompt, [])
    if shots and showing is None:
        raise RequestError("this takes prompts without media.", param="multi_modal_data")
    shown = Shown((), None) if showing is None else showing.prepared(shots)
    tokens = text.encode(shown.worded(given)) if isinstance(given, str) else list(given)
    return Asked(**shown.placed(tokens, "prompt")._asdict())


def of_chat(
    text: TextModel,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    *,
    continues: bool = False,
    extra: Mapping[str, Any] | None = None,
    showing: Showing | None = None,
) -> Asked:
    """Media in messages are left to the template where nothing shows them."""
    told, shots = (messages, []) if showing is None else shown_in(messages)
    shown = Shown((), None) if showing is None else showing.prepared(shots)
    prompt = text.render(
        list(told),
        tools=tools,
        add_generation_prompt=not continues,
        continue_final=continues,
        template_kwargs=extra,
    )
    open = text.thoughts(prompt, continues=continues) == "open"
    placed = shown.placed(text.special_text(shown.worded(prompt), param="messages"), "messages")
    return Asked(
        placed.tokens,
        text.markers(calls=bool(tools)),
        lambda answer: text.read(answer, tools, open=open),
        placed.media,
        placed.spans,
    )
