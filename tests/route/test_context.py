"""Histories that are cut: the same beginning from turn to turn, whole pairs of calls and results, roles in turns, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.route.context.compact import Compacted, compacted
from sapwood.route.context.counts import Estimate
from sapwood.route.context.plan import Plan, head_of, marks_of
from sapwood.route.context.shapes import Message, calls, results
from sapwood.route.context.table import Context
from sapwood.route.inner import Unanswered
from sapwood.route.sizes import estimated, middle_out
from sapwood.route.table import checked


def agent(rng: random.Random, turns: int, *, anthropic: bool = False) -> list[Message]:
    """A session of an agent that reads files, some of them again, and is asked for more now and then."""
    files = ["".join(rng.choice("abcdefgh \n") for _ in range(rng.randint(200, 4000))) for _ in range(5)]
    messages: list[Message] = [] if anthropic else [{"role": "system", "content": "be good " * 20}]
    messages.append({"role": "user", "content": "mend the program"})
    for turn in range(turns):
        names = [rng.randrange(len(files)) for _ in range(rng.choice((1, 1, 2)))]
        ids = [f"call_{turn}_{number}" for number in range(len(names))]
        if anthropic:
            used = [
                {"type": "tool_use", "id": id, "name": "read", "input": {"n": n}}
                for id, n in zip(ids, names, strict=True)
            ]
            told = [
                {"type": "tool_result", "tool_use_id": id, "content": files[n]}
                for id, n in zip(ids, names, strict=True)
            ]
            messages += [{"role": "assistant", "content": [{"type": "text", "text": f"look {turn}"}, *used]}]
            messages += [{"role": "user", "content": told}]
        else:
            function = [{"name": "read", "arguments": json.dumps({"n": n})} for n in names]
            made = [{"id": id, "type": "function", "function": one} for id, one in zip(ids, function, strict=True)]
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
            messages += [
                {"role": "tool", "tool_call_id": id, "content": files[n]} for id, n in zip(ids, names, strict=True)
            ]
        if rng.random() < 0.3:
            messages.append({"role": "assistant", "content": f"done {turn} " + "so " * rng.randint(1, 100)})
            messages.append({"role": "user", "content": f"and then {turn}? " + "more " * rng.randint(1, 100)})
    return messages


def cut(messages: Sequence[Message], context: Context, summary: str | None = "SUMMED UP") -> Compacted:
    async def sum_up(plan: Plan) -> str:
        if summary is None:
            raise Unanswered("nobody is there")
        return f"{summary} {plan.cut}"

    return asyncio.run(compacted(messages, [[{"name": "read"}]], context, Estimate(), sum_up))


def requests(messages: Sequence[Message]) -> list[int]:
    """How long the history was whenever it was sent."""
    return [at for at in range(1, len(messages) + 1) if at == len(messages) or messages[at]["role"] == "assistant"]


STEPS = [
    ("file_reads", "tool_outputs", "summary"),
    ("file_reads", "tool_outputs", "drop"),
    ("tool_outputs",),
    ("file_reads",),
    ("drop",),
    ("file_reads", "summary"),
]


@pytest.mark.parametrize("steps", STEPS, ids="+".join)
@pytest.mark.parametrize("anthropic", [False, True], ids=["openai", "anthropic"])
def test_the_next_turn_begins_as_the_one_before(steps: Any, anthropic: bool) -> None:
    """All of a shortened history is the beginning of the next one, but for the few turns at which something is cut."""
    context = Context(budget=6000, steps=steps, summary_model="m", summary_tokens=100, keep_last=3)
    for seed in range(2):
        messages = agent(random.Random(seed), 40, anthropic=anthropic)
        before: list[Message] = []
        breaks, ends = 0, requests(messages)
        for end in ends:
            done = cut(messages[:end], context)
            kept = done.messages[: len(before)]
            breaks += json.dumps(kept) != json.dumps(before)  # to the byte
            before = done.messages
            whole_pairs(done.messages)
            in_turns(done.messages)
            if "drop" in steps or "summary" in steps:
                assert done.fits or len(done.messages) <= 3 + context.keep_last + 3
        assert (steps != ("file_reads",)) <= breaks <= len(ends) * 0.3, (breaks, len(ends))


def whole_pairs(messages: Sequence[Message]) -> None:
    open_calls: list[str] = []
    for message in messages:
        answered = [one.id for one in results(message)]
        assert set(answered) <= set(open_calls)
        if not answered:
            assert not open_calls, "a call lost its result"
        open_calls = [id for id in open_calls if id not in answered] + [call.id for call in calls(message)]


def in_turns(messages: Sequence[Message]) -> None:
    roles = [one["role"] for one in messages if one["role"] not in ("system", "tool") and not results(one)]
    pairs = [(one, two) for one, two in pairwise(roles) if one == two == "user"]
    assert not pairs and roles[0] == "user"


def test_nothing_is_done_while_it_fits() -> None:
    messages = agent(random.Random(1), 3)
    done = cut(messages, Context(budget=100_000))
    assert (
        done.messages == messages
        and not done.steps
        and done.fits
        and done.before == done.after
        and done.same == len(messages)
    )


def test_steps_say_what_they_did() -> None:
    messages = agent(random.Random(2), 46)
    context = Context(budget=12_000, tool_output_tokens=30, steps=STEPS[0], summary_model="m", summary_tokens=100)
    done = cut(messages, context)
    by = {one.step: one for one in done.steps}
    assert set(by) == {"file_reads", "tool_outputs", "summary"}
    assert done.after <= 12_000 < done.before and done.how == "estimated" and done.fits
    gone = by["summary"].messages
    assert gone == list(range(2, gone[-1] + 1)) and "SUMMED UP" in json.dumps(done.messages[:3])
    assert done.messages[0] == messages[0]
    shorter = [one for one in done.messages if one["role"] == "tool" and "were left out" in one["content"]]
    assert len(shorter) == len(by["tool_outputs"].messages) > 0
    again = [
        one
        for one in done.messages
        if one["role"] == "tool" and one["content"].startswith("[the same output as that of call")
    ]
    assert len(again) == len(by["file_reads"].messages) > 0
    for one in again:  # the call that is named is still there, with its output
        name = one["content"].split()[7]
        there = next(other for other in done.messages if other.get("tool_call_id") == name)
        assert there["content"].startswith("[the same") is False and estimated(there["content"]) >= 64
    assert done.messages[-4:] != [] and done.shown().startswith(
        f"{done.before} -> {done.after} tokens (estimated); tool_outputs "
    )


def test_without_a_summary_messages_are_left_out_and_that_is_told() -> None:
    done = cut(
        agent(random.Random(2), 30), Context(budget=6000, steps=STEPS[0], summary_model="m", summary_tokens=100), None
    )
    assert done.failed == "nobody is there" and "drop" in {one.step for one in done.steps}
    assert "earlier messages were left out here" in json.dumps(done.messages)


def test_what_cannot_be_made_to_fit_is_told() -> None:
    messages = [{"role": "user", "content": "word " * 3000}]
    done = cut(messages, Context(budget=1000))
    assert done.messages == messages and not done.fits


def test_system_messages_within_are_kept_and_a_history_may_begin_with_anybody() -> None:
    messages: list[Message] = [{"role": "assistant", "content": "hello"}]
    for turn in range(20):
        messages += [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "yes " * 100}]
        if turn == 2:
            messages.append({"role": "system", "content": "NEW RULES"})
    done = cut(messages, Context(budget=1500, steps=("drop",)))
    assert [one for one in done.messages if one["role"] == "system"] == [{"role": "system", "content": "NEW RULES"}]
    assert done.fits and done.messages[1]["role"] == "user"


def test_marks_are_not_between_a_call_and_its_result() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "user", "content": "meanwhile"},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert head_of(messages) == 1 and marks_of(messages, 1) == [4, 5]


def test_middles_are_left_out_by_bytes_of_whole_letters() -> None:
    text = "語" * 4000
    short = middle_out(text, 100)
    assert estimated(short) < 130 and short.startswith("語語") and short.endswith("語語") and "about 33" in short
    assert middle_out("short", 100) == "short" and middle_out(text, 0) == "[about 3429 tokens were left out]"


def test_long_sessions_are_planned_quickly_enough_to_be_planned_at_all() -> None:
    messages = agent(random.Random(5), 1500)
    done = cut(messages, Context(budget=20_000))
    assert done.fits and len(messages) > 3000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"budget": 1}, "budget"),
        ({"budget": 1000, "steps": ["summary"]}, "wants a summary_model"),
        ({"budget": 1000, "steps": ["forget"]}, "forget"),
        ({"budget": 500, "steps": ["summary"], "summary_model": "m"}, r"\[context.m\] has no room for summary_tokens"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked({"server": [{"url": "http://a"}], "context": {"m": raw}}, "t.toml")
