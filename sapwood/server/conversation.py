"""What an output says in a conversation, whatever the API that asked: the parser's events, and what is to be done then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.server.front import Front
from sapwood.server.generation import Choice
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Event, Parser, Said, gather


class Reading:
    """Reads one choice, at once or as it grows, and counts what was read when it has ended.

    `schemas` are those of the functions that may be called; without `split` thoughts stay in the text. `to_call`: it has ended so that its calls should be run.
    """

    def __init__(
        self,
        front: Front,
        schemas: Mapping[str, Any],
        *,
        most_calls: int | None,
        thoughts: Thoughts,
        split: bool = True,
    ) -> None:
        self._front = front
        self._open = thoughts == "open"
        self._parser = Parser(
            front.text.dialect, tools=schemas, thinking=self._open, split=split, most_calls=most_calls
        )
        self._called = False
        self.to_call = False

    def events(self, choice: Choice, text: str) -> list[Event]:
        """What more of its text says; all that is left when `choice` has ended, after which there must be no more."""
        events = self._parser.push(text)
        if choice.finish is not None:
            events += self._parser.finish()
        self._called = self._called or any(kind == "call" for kind, _, _ in events)
        if choice.finish is not None:
            self._end(choice)
        return events

    def said(self, text: str) -> Said:
        """A whole output taken apart, without counting it."""
        return gather([*self._parser.push(text), *self._parser.finish()])

    def _end(self, choice: Choice) -> None:
        text = self._front.text
        if text.dialect.reasoning is not None:
            choice.num_thought_tokens = text.num_thought_tokens(choice.tokens, open=self._open)
        broken = self._parser.num_malformed
        tally = self._front.metrics.tool_calls
        tally.labels("read").inc(max(self._parser.num_calls - broken, 0))
        tally.labels("malformed").inc(broken)
        stopped_within = isinstance(choice.stop, str) and self._parser.cut  # nobody should run such a call
        self.to_call = self._called and choice.finish == "stop" and not stopped_within
