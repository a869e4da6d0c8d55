"""Words an output as a response, whole or event by event."""

from __future__ import annotations

import time

from msgspec import UNSET

from sapwood.server.conversation import CallIds, Turn
from sapwood.server.errors import Problem
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.server.openai.logprobs import TokenLogprob, token_logprobs
from sapwood.server.openai.replies import drafts_of
from sapwood.server.openai.responses.entries import CallEntry, CustomEntry, Entry, Pen, SaidEntry, ThoughtEntry
from sapwood.server.openai.responses.objects import (
    Failure,
    Incomplete,
    InputDetails,
    OutputDetails,
    Response,
    Usage,
)
from sapwood.server.openai.responses.pieces import Pieces
from sapwood.server.openai.responses.tools import Tools


class Writer:
    """Give it all news of a turn's only choice, `push`, and take the events from it, `taken`.

    `seal`: thoughts are told as clients keep them; `drafts`: the usage tells how drafts fared.

    Attributes:
        response: What has become of it so far; an item is in it when it is complete.
        over: The response has ended, whatever its status.
    """

    def __init__(self, front: Front, response: Response, turn: Turn, tools: Tools, *, seal: bool, drafts: bool) -> None:
        self.response = response
        self.over = False
        self._front, self._turn, self._tools, self._seal = front, turn, tools, seal
        self._drafts = drafts
        self._ids = CallIds(front, turn)
        self._pen = Pen()
        self._open: Entry | None = None
        choice = turn.choices[0]
        self._pieces = None if choice.params.logprobs is None else Pieces(front, choice)
        self._held: list[TokenLogprob] = []  # of text that has not come yet
        self._created = False

    def taken(self) -> list[bytes]:
        """The events since the last time."""
        return self._pen.taken()

    def queue(self) -> None:
        """It is known, and has not begun."""
        self.response.status = "queued"
        self._create()
        self._pen("response.queued", response=self.response)

    def push(self, news: News) -> None:
        if self._pieces is None:
            self._push(news)
            return
        for one in self._pieces(news):
            self._push(one)

    def _push(self, news: News) -> None:
        if news.first:
            self.response.status = "in_progress"
            self._create()
            self._pen("response.in_progress", response=self.response)
        choice = news.choice
        if news.logprobs:
            self._held += token_logprobs(self._front.text, news.logprobs, choice.params.logprob_token_ids)
        for kind, text, number in self._turn.events(news):
            logprobs, self._held = self._held, []
            if kind == "call":
                self._open = self._call(text, number)
                continue
            if kind != "arguments" and (self._open is None or self._open.kind != kind):
                self._open = SaidEntry(self._pen, self._next()) if kind == "text" else self._thought()
            assert self._open is not None
            self._open.more(text, logprobs)
        if choice.finish is not None:
            self._finish(choice)

    def fail(self, problem: Problem) -> None:
        """It has gone wrong on the way."""
        self._close("incomplete")
        self._pen("error", code=problem.code or problem.kind, message=problem.message, param=problem.param)
        self.response.error = Failure(problem.code or "server_error", problem.message)
        self._end("failed")

    def cancel(self) -> None:
        """It was told to stop; no event says so."""
        self._close("incomplete")
        self.response.status, self.over = "cancelled", True

    def _create(self) -> None:
        if not self._created:
            self._created = True
            self._pen("response.created", response=self.response)

    def _next(self) -> int:
        """Where the next item stands."""
        self._close("completed")
        return len(self.response.output)

    def _thought(self) -> ThoughtEntry:
        return ThoughtEntry(self._pen, self._next(), seal=self._seal)

    def _call(self, called: str, number: int) -> Entry:
        name = self._tools.name(called)
        entry = CustomEntry if name.custom else CallEntry
        return entry(self._pen, self._next(), name, self._ids(called, number))

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._open.close(status)
            self.response.output.append(self._open.item)
            self._open = None

    def _finish(self, choice: Choice) -> None:
        cut = choice.finish == "length"
        if not self.response.output and self._open is None:
            self._open = SaidEntry(self._pen, 0)  # nothing was said, and that is the answer
        within_call = self._open is not None and self._open.kind == "call" and not self._turn.to_call(choice)
        self._close("incomplete" if cut or within_call else "completed")
        self.response.usage = _usage_of(choice, drafts=self._drafts)
        if cut:
            self.response.incomplete_details = Incomplete()
        self._end("incomplete" if cut else "completed")

    def _end(self, status: str) -> None:
        self.response.status, self.over = status, True
        if status == "completed":
            self.response.completed_at = int(time.time())
        self._pen(f"response.{status}", response=self.response)


def _usage_of(choice: Choice, *, drafts: bool) -> Usage:
    prompt, output, cached = len(choice.prompt.tokens), len(choice.tokens), choice.num_cached_tokens
    details = OutputDetails(reasoning_tokens=choice.num_thought_tokens or 0)
    details.count([choice])
    left_out = choice.num_left_out
    read = InputDetails(cached, 0 if left_out else max(prompt - cached, 0), left_out or UNSET)
    usage = Usage(prompt, read, output, details, prompt + output)
    if drafts:
        usage.speculation = drafts_of([choice])
    return usage
