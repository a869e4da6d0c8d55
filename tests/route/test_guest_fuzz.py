"""Whatever a body has, no guest falls over it: servers say what is wrong with it."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.route.context.compact import compacted
from sapwood.route.context.counts import Estimate
from sapwood.route.context.plan import Plan
from sapwood.route.context.table import Context
from sapwood.route.semantic.question import Question
from sapwood.route.semantic.signals import is_slow, seen
from sapwood.route.semantic.table import Has, Jailbreak, Language, Personal, Reasoning, Size, Words

ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=30), st.just("word " * 200))
PART = st.dictionaries(
    st.sampled_from(["type", "text", "content", "tool_use_id", "id", "name", "input"]),
    st.one_of(ODD, st.sampled_from(["text", "tool_use", "tool_result", "image"]), st.lists(ODD, max_size=2)),
    max_size=5,
)
CALL = st.dictionaries(
    st.sampled_from(["id", "function", "custom"]), st.one_of(ODD, st.dictionaries(st.just("name"), ODD))
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool", "developer"]), ODD),
        "content": st.one_of(ODD, st.lists(st.one_of(PART, ODD), max_size=4), PART),
        "tool_calls": st.one_of(ODD, st.lists(st.one_of(CALL, ODD), max_size=3)),
        "tool_call_id": ODD,
        "images": ODD,
    },
)
BODY = st.dictionaries(
    st.sampled_from(
        ["messages", "input", "prompt", "system", "tools", "thinking", "reasoning", "text", "max_tokens", "format"]
    ),
    st.one_of(ODD, PART, st.lists(st.one_of(MESSAGE, ODD), max_size=8)),
)
SIGNALS = [
    Words(any=("a",), of="all"),
    Size(),
    Size(unit="messages"),
    Size(of="user"),
    Language(any=("en",)),
    Has(any=("tools", "images", "schema")),
    Reasoning(),
    Personal(),
    Jailbreak(),
]


@settings(max_examples=100, deadline=None)
@given(BODY)
def test_any_body_is_looked_at(body: dict[str, Any]) -> None:
    question = Question(body)
    for signal in SIGNALS:
        found = seen(signal, question)
        assert not is_slow(signal) and found.holds is not None and 0 <= found.score <= 1
    assert question.tokens >= 0 and question.answer(300) >= 1 and isinstance(question.opening, list)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(MESSAGE, max_size=20),
    st.sampled_from([("file_reads", "tool_outputs", "summary"), ("tool_outputs",), ("drop",)]),
)
def test_any_history_is_shortened_or_left(messages: list[dict[str, Any]], steps: Any) -> None:
    async def sum_up(plan: Plan) -> str:
        return "summed up"

    context = Context(budget=200, steps=steps, summary_model="m", summary_tokens=20, keep_last=1, tool_output_tokens=10)
    done = asyncio.run(compacted(messages, [], context, Estimate(), sum_up))
    assert done.steps or done.messages == messages
