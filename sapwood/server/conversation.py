"""A turn of a conversation, whatever the API that asks: what is wanted (`Ask`), and what the outputs say (`Turn`).

A dialect makes an `Ask` of its body, words the events of a `Turn`, and has its own envelope and errors. All between is here.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sapwood.base.sampling import SamplingParams
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Asked
from sapwood.server.calling import EndChecks, Toolbox, grammar_of
from sapwood.server.front import Front, Rendered, Talk
from sapwood.server.generation import Choice, News, Prompt, choices_of, clipped
from sapwood.server.prediction import predicted
from sapwood.server.thinking import Budget, bounded
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Event, Parser, Said, gather

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a body asks for.

    Attributes:
        talk: The messages, and how they become a prompt.
        toolbox: The tools: which are offered, whether one must be called, whether many may be; None without any.
        budget: The most tokens of thoughts; None leaves that to the server.
        format: What the text has to match.
        params: How tokens are drawn, and how many outputs there are.
        split: Thoughts are told apart from the text.
        salt: Cached prefixes are shared with those that have the same.
        priority: When it runs, where the scheduler goes by that.
        limit_param: The field that says how many tokens there are at most.
        clipped: There may be fewer where the context ends sooner; else that is an error.
        scoring: Only the prompt is computed.
        prediction: What the answer will probably be like; it says nothing of thoughts.
    """

    talk: Talk
    toolbox: Toolbox | None
    budget: Budget | None
    format: Asked | None
    params: SamplingParams
    split: bool = True
    salt: str = ""
    priority: int = 0
    limit_param: str = "max_tokens"
    clipped: bool = False
    scoring: bool = False
    prediction: str = ""


class Turn:
    """The outputs of an Ask. Run its `choices`, and give what comes of them to `events` or, at the end, to `said`.

    Attributes:
        plain: An output is the answer as it is: neither thoughts nor calls are looked for.
        num_past_calls: How many calls the conversation has before: some models number them through.
    """

    def __init__(
        self,
        front: Front,
        ask: Ask,
        prompt: Prompt,
        params: SamplingParams,
        *,
        plain: bool,
        thoughts: Thoughts,
        end_checks: EndChecks | None,
    ) -> None:
        self.choices = choices_of([(prompt, params)])
        self.plain = plain
        self.num_past_calls = sum(len(message.get("tool_calls") or ()) for message in ask.talk.messages)
        self._front, self._ask = front, ask
        self._thoughts: Thoughts = thoughts
        self._end_checks = end_checks
        self._readings: dict[int, Reading] = {}

    @property
    def prompt(self) -> Prompt:
        return self.choices[0].prompt

    def events(self, news: News) -> list[Event]:
        """What some news of a choice say."""
        return self._reading(news.choice).events(news.choice, news.text)

    def said(self, choice: Choice) -> Said:
        """What a whole choice says, of which nothing was asked before."""
        return gather(self._reading(choice).events(choice, choice.text))

    def to_call(self, choice: Choice) -> bool:
        """Whether a choice has ended so that its calls should be run."""
        return self._reading(choice).to_call

    def finding(self, choice: Choice) -> Finding | None:
        """What is found of a complete choice, where its grammar leaves something to check."""
        if self._end_checks is None:
            return None
        # A grammar never binds thoughts, whether they are told apart or not.
        return self._front.checked(self._end_checks(self._begin(split=True).said(choice.text)))

    def _reading(self, choice: Choice) -> Reading:
        if choice.index not in self._readings:
            self._readings[choice.index] = self._begin(split=self._ask.split)
        return self._readings[choice.index]

    def _begin(self, *, split: bool) -> Reading:
        toolbox = self._ask.toolbox
        return Reading(
            self._front,
            {} if toolbox is None else toolbox.schemas,
            most_calls=None if toolbox is None or toolbox.many else 1,
            thoughts=self._thoughts,
            split=split,
            plain=self.plain,
        )


async def prompt_of(front: Front, talk: Talk, toolbox: Toolbox | None) -> Rendered:
    """The conversation and its tools as a prompt. Raises RequestError, naming the field."""
    rendered = await front.render(talk, tools=None if toolbox is None else toolbox.told)
    front.check_tokens(rendered.tokens, talk.param)
    return rendered


async def begin(front: Front, ask: Ask) -> Turn:
    """Write the prompt and find the grammar. Raises RequestError, naming the field."""
    toolbox, rendered = ask.toolbox, await prompt_of(front, ask.talk, ask.toolbox)
    grammar, end_checks = await grammar_of(front, toolbox, ask.format, rendered.thoughts)
    params = ask.params if grammar is None else msgspec.structs.replace(ask.params, grammar=grammar)
    await front.check_first(params, "tools" if ask.format is None else ask.format.param)
    params = bounded(front, ask.budget, params, rendered.thoughts)
    if ask.clipped:
        params = clipped(params, front.facts.max_model_len - front.facts.begun(len(rendered.tokens)))
    params = msgspec.structs.replace(params, prediction=await predicted(front, ask.prediction))
    plain = front.text.dialect.reasoning is None and (toolbox is None or not toolbox.offers)
    prompt = Prompt(
        rendered.tokens,
        ask.talk.param,
        ask.salt,
        ask.priority,
        limit_param=ask.limit_param,
        scoring=ask.scoring,
        shown=frozenset() if plain else front.text.markers(calls=toolbox is not None),
        media=rendered.media,
        spans=rendered.spans,
    )
    return Turn(front, ask, prompt, params, plain=plain, thoughts=rendered.thoughts, end_checks=end_checks)


class CallIds:
    """The ids of a turn's calls, as the model's template takes them back; `prefix` is a dialect's own."""

    def __init__(self, front: Front, turn: Turn, prefix: str = "call_") -> None:
        tools = front.text.dialect.tools
        self._kind = tools.ids if tools is not None else "long"
        self._num_past_calls = turn.num_past_calls
        self._prefix = prefix

    def __call__(self, name: str, number: int) -> str:
        """The id of the turn's call `number`."""
        match self._kind:
            case "numbered":
                return f"functions.{name}:{self._num_past_calls + number}"
            case "short":
                return "".join(secrets.choice(_ALPHABET) for _ in range(9))
        return f"{self._prefix}{secrets.token_hex(12)}"


class Reading:
    """Reads one choice, at once or as it grows, and counts what was read when it has ended.

    `schemas` are those of the functions that may be called; without `split` thoughts stay in the text; `plain` output is text
    and nothing else. `to_call`: it has ended so that its calls should be run.
    """

    def __init__(
        self,
        front: Front,
        schemas: Mapping[str, Any],
        *,
        most_calls: int | None,
        thoughts: Thoughts,
        split: bool = True,
        plain: bool = False,
    ) -> None:
        self._front = front
        self._open = thoughts == "open"
        self._parser = (
            None
            if plain
            else Parser(front.text.dialect, tools=schemas, thinking=self._open, split=split, most_calls=most_calls)
        )
        self._called = False
        self.to_call = False

    def events(self, choice: Choice, text: str) -> list[Event]:
        """What more of its text says; all that is left when `choice` has ended, after which there must be no more."""
        if self._parser is None:
            return [Event("text", text)] if text else []
        events = self._parser.push(text)
        if choice.finish is not None:
            events += self._parser.finish()
        self._called = self._called or any(kind == "call" for kind, _, _ in events)
        if choice.finish is not None:
            self._end(self._parser, choice)
        return events

    def said(self, text: str) -> Said:
        """A whole output taken apart, without counting it. Give it nothing else then."""
        if self._parser is None:
            return Said(text, "", [])
        return gather([*self._parser.push(text), *self._parser.finish()])

    def _end(self, parser: Parser, choice: Choice) -> None:
        text = self._front.text
        if text.dialect.reasoning is not None:
            choice.num_thought_tokens = text.num_thought_tokens(choice.tokens, open=self._open)
        broken = parser.num_malformed
        tally = self._front.metrics.tool_calls
        tally.labels("read").inc(max(parser.num_calls - broken, 0))
        tally.labels("malformed").inc(broken)
        stopped_within = isinstance(choice.stop, str) and parser.cut  # nobody should run such a call
        self.to_call = self._called and choice.finish == "stop" and not stopped_within
