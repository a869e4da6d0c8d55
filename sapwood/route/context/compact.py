"""A history, shortened: what a plan says is done, and said."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sapwood.route.context import shapes
from sapwood.route.context.counts import Counter
from sapwood.route.context.plan import Plan, Sizes, Twice, planned
from sapwood.route.context.shapes import Message
from sapwood.route.context.table import Context
from sapwood.route.inner import Unanswered
from sapwood.route.sizes import estimated, middle_out

log = logging.getLogger(__name__)

_WORTH_TELLING_ONCE = 64  # tokens of an output that is not repeated
_NOTE = 24  # tokens of the note that messages were left out
_OF_A_NOTE = 32  # tokens that a summary's own words have around it

SumUp = Callable[[Plan], Awaitable[str]]


class Done(NamedTuple):
    """One step that was taken: for which messages, by their places in the history that came, and the tokens that it saved."""

    step: str
    messages: list[int]
    tokens: int


@dataclass(frozen=True)
class Compacted:
    """A history and what became of it.

    Attributes:
        same: Messages at the beginning that are as they were.
        before: Tokens, `after` the same; `how` they were counted.
        fits: Whether it is within the budget.
        failed: Why there is no summary where there should be one.
    """

    messages: list[Message]
    steps: list[Done]
    same: int
    before: int
    after: int
    how: str
    fits: bool
    failed: str | None = None

    def shown(self) -> str:
        """For a header."""
        steps = ", ".join(f"{one.step} {len(one.messages)}" for one in self.steps) or "nothing"
        return f"{self.before} -> {self.after} tokens ({self.how}); {steps}"


async def compacted(
    messages: Sequence[Message], beside: Sequence[Any], context: Context, counter: Counter, sum_up: SumUp
) -> Compacted:
    """A history within a budget, if that can be; `beside` is what else a prompt has: tools, a system prompt."""
    counted = await counter.of([*beside, *messages])
    base, whole = sum(counted.tokens[: len(beside)]), counted.tokens[len(beside) :]
    shorts = [_short(message, context) if "tool_outputs" in context.steps else message for message in messages]
    short = [_scaled(size, one, two) for size, one, two in zip(whole, messages, shorts, strict=True)]
    earlier = _earlier(messages) if "file_reads" in context.steps else {}
    sizes = Sizes(base, whole, short, _twice(messages, whole, earlier), _note_tokens(context))
    plan = planned(messages, sizes, context)
    before = base + sum(whole)
    if plan.idle:
        fits = before <= context.budget
        return Compacted(list(messages), [], len(messages), before, before, counted.how, fits)
    made, steps = _changed(messages, shorts, sizes, plan, earlier)
    failed = None
    if plan.cut > plan.head:
        note, step, failed = await _note(plan, context, sum_up)
        made[: plan.cut] = _joined(messages, made, plan, note)
        gone = [at for at in range(plan.head, plan.cut) if not shapes.is_opening(messages[at])]
        steps.append(Done(step, gone, sum(whole[at] for at in gone) - estimated(note)))
    after = await counter.of([*beside, *made])
    same = next((at for at, one in enumerate(made) if at >= len(messages) or one != messages[at]), len(made))
    total = sum(after.tokens)
    how = counted.how if counted.how == after.how else "estimated"
    return Compacted(made, steps, same, before, total, how, total <= context.budget, failed)


def _changed(
    messages: Sequence[Message], shorts: Sequence[Message], sizes: Sizes, plan: Plan, earlier: _Earlier
) -> tuple[list[Message], list[Done]]:
    """Messages with what is said shortly, or once."""
    made, steps = list(messages), []
    if cut := [at for at in range(plan.cut, plan.mark) if shorts[at] != messages[at]]:
        for at in cut:
            made[at] = shorts[at]
        steps.append(Done("tool_outputs", cut, sum(sizes.whole[at] - sizes.short[at] for at in cut)))
    if told := [one for one in sizes.twice if one.earlier >= plan.mark]:
        for at in dict.fromkeys(one.at for one in told):
            made[at] = _told_once(messages[at], at, earlier, plan.mark)
        steps.append(Done("file_reads", sorted({one.at for one in told}), sum(one.saved for one in told)))
    return made, steps


async def _note(plan: Plan, context: Context, sum_up: SumUp) -> tuple[str, str, str | None]:
    """What stands for messages that are left out, by which step, and why not by the better one."""
    failed = None
    if "summary" in context.steps:
        try:
            return f"[What was said before, summed up:]\n{await sum_up(plan)}", "summary", None
        except Unanswered as error:
            log.warning("a history is cut without a summary: %s", error)
            failed = str(error)
    return f"[{plan.cut - plan.head} earlier messages were left out here.]", "drop", failed


def _joined(messages: Sequence[Message], made: Sequence[Message], plan: Plan, note: str) -> list[Message]:
    """What is left of all before the cut, with a note in such a place that user and assistant still take turns."""
    kept = list(made[: plan.head])
    kept += [one for one in messages[plan.head : plan.cut] if shapes.is_opening(one)]
    goes_on = messages[plan.cut].get("role") if plan.cut < len(messages) else "assistant"
    user = plan.head - 1
    if user < 0 or kept[user].get("role") != "user":
        return [*kept, shapes.said("user", note)]
    if goes_on == "user":
        return [*kept, shapes.said("assistant", note)]
    kept[user] = shapes.with_note(kept[user], note)
    return kept


def _short(message: Message, context: Context) -> Message:
    found = shapes.results(message)
    most = context.tool_output_tokens

    def text(number: int) -> str | None:
        one = found[number]
        if one.other:
            return middle_out(one.text, most) + "\n[what is no text was left out]"
        return middle_out(one.text, most) if estimated(one.text) > most + _NOTE else None

    return shapes.with_results(message, text) if found else message


_Earlier = dict[tuple[int, int], list[tuple[int, str]]]


def _earlier(messages: Sequence[Message]) -> _Earlier:
    """Outputs (message, number in it) that earlier messages have too, with these and the calls that they answer, in order."""
    seen: dict[str, list[tuple[int, str]]] = {}
    found: _Earlier = {}
    for at, message in enumerate(messages):
        for number, one in enumerate(shapes.results(message)):
            if one.other or estimated(one.text) < _WORTH_TELLING_ONCE:
                continue
            before = seen.setdefault(one.text, [])
            if there := [place for place in before if place[0] < at]:
                found[at, number] = there
            before.append((at, one.id))
    return found


def _twice(messages: Sequence[Message], whole: Sequence[int], earlier: _Earlier) -> list[Twice]:
    found = []
    for (at, number), there in earlier.items():
        one = shapes.results(messages[at])[number]
        found.append(Twice(at, there[-1][0], max(min(estimated(one.text), whole[at]) - _NOTE, 0)))
    return found


def _told_once(message: Message, at: int, earlier: _Earlier, mark: int) -> Message:
    def text(number: int) -> str | None:
        there = [call for place, call in earlier.get((at, number), ()) if place >= mark]
        return f"[the same output as that of call {there[0]} above]" if there else None

    return shapes.with_results(message, text)


def _scaled(tokens: int, whole: Message, short: Message) -> int:
    """Of a shortened message: as many as of the whole one, by what is left of its outputs."""
    if short is whole or short == whole:
        return tokens
    sizes = [sum(estimated(one.text) for one in shapes.results(message)) for message in (whole, short)]
    return max(tokens - (sizes[0] - sizes[1]) if sizes[0] else tokens, 1)


def _note_tokens(context: Context) -> int:
    return context.summary_tokens + _OF_A_NOTE if "summary" in context.steps else _NOTE
