"""The outputs of one HTTP request as they grow, one or many, whatever the API that asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import msgspec
import numpy as np

from sapwood.adapters.registry import Known
from sapwood.base.cursor import came_true
from sapwood.base.drafts import Drafted
from sapwood.base.errors import RequestError, SapwoodError
from sapwood.base.insight import Insight, Told
from sapwood.base.media import Media, Span
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Task
from sapwood.base.weights import FIRST
from sapwood.base.wire import Delta, Facts
from sapwood.engine.checks import input_of
from sapwood.engine.client import Stream, copies
from sapwood.server.errors import respelled, with_param
from sapwood.server.explained import ANSWER, explained
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.server.turns import TURN_SECONDS
from sapwood.text import Assembler

_LIKELY = 256  # tokens of an output whose bound nobody has said, until it has ended


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids, and where the prefix cache may look for them.

    `param` and `limit_param` are what the caller calls the prompt and the most tokens to generate. `scoring` asks for the prompt's logprobs only: one token is generated, as the engine needs, and dropped.
    `shown` are the special tokens that are part of an output's text all the same, since they structure it. `names` are what it
    may be aborted by. A `task` that is no generation is scoring too. `media` are what its encoder is fed with, and stand where `spans` say.
    An `adapter` of its own goes before the request's.
    With `begins` an encoder reads the tokens, and the decoder begins so.
    """

    tokens: list[int]
    param: str
    salt: str = ""
    priority: int = 0
    limit_param: str = "max_tokens"
    scoring: bool = False
    shown: frozenset[int] = frozenset()
    names: tuple[str, ...] = ()
    task: Task = GENERATE
    media: tuple[Media, ...] = ()
    spans: tuple[Span, ...] = ()
    adapter: Known | None = None
    begins: tuple[int, ...] = ()

    def given(self) -> tuple[list[int], tuple[Media, ...]]:
        """Tokens and media for the engine."""
        return (list(self.begins), (input_of(self.tokens),)) if self.begins else (self.tokens, self.media)


@dataclass(slots=True, eq=False)
class News:
    """What has come since the last news of a choice. `first` marks its first."""

    choice: Choice
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    first: bool


@dataclass(slots=True, eq=False)
class Choice:
    """One output, or the `vector` of a task that wants one. `insights` is what was told of its positions, piece by piece. `num_predicted` tokens of it were foreseen by its prediction, and `drafted` tells how drafts fared if the engine has
    ended it. `finish` is None while it grows, then 'stop', 'length' or 'abort'; `stop` what stopped it, `weight_version` that of the
    weights that computed its end."""

    index: int
    prompt: Prompt
    params: SamplingParams
    begun: bool = False
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_left_out: int = 0
    num_thought_tokens: int | None = None
    drafted: dict[str, Drafted] = field(default_factory=dict)
    num_predicted: int = 0
    vector: bytes = b""
    insights: list[dict[Insight, Told]] = field(default_factory=list)
    finish: str | None = None
    stop: int | str | None = None
    weight_version: str = FIRST

    @property
    def num_mispredicted(self) -> int:
        """Tokens of its prediction that did not come true; none before it has ended."""
        return len(self.params.prediction) - self.num_predicted if self.finish else 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, delta: Delta, assembler: Assembler) -> News | None:
        """Add a delta; None if it tells of the prompt only."""
        text, tokens, logprobs = assembler.take(delta)
        self.num_cached_tokens, self.prompt_logprobs = assembler.num_cached_tokens, assembler.prompt_logprobs
        self.num_left_out = assembler.num_left_out
        self.insights = assembler.insights
        if not delta.tokens and delta.finish is None:
            return None
        first, self.begun = not self.begun, True
        if self.prompt.scoring:
            self.vector = delta.vector
            self.finish = "abort" if delta.finish == "abort" else "length"
            return News(self, "", [], [], first)
        self.finish, self.stop = assembler.finish, assembler.stop
        self.texts.append(text)
        self.tokens += tokens
        self.logprobs += logprobs
        if self.finish is not None:
            self.drafted = delta.drafted
            if self.params.prediction:
                self.num_predicted = came_true(
                    *(np.array(one, np.int32) for one in (self.params.prediction, self.tokens))
                )
        return News(self, text, tokens, logprobs, first)


HandOn = Callable[[list[News]], asyncio.Task[None] | None]
"""Passes news on at once, or returns the task that does as soon as the client can take them."""


def choices_of(prompts: Sequence[tuple[Prompt, SamplingParams]], *, most: int = MAX_CHOICES) -> list[Choice]:
    """The outputs that prompts ask for, n for each, numbered through. Raises RequestError if they are more than `most`."""
    total = sum(params.n for _, params in prompts)
    if total > most:
        param = "n" if len(prompts) == 1 else prompts[0][0].param
        raise RequestError(f"{total} outputs in one request are too many; at most {most}.", param=param)
    pairs = [(prompt, one) for prompt, params in prompts for one in copies(params)]
    return [Choice(index, prompt, params) for index, (prompt, params) in enumerate(pairs)]


def params_for(prompt: Prompt, params: SamplingParams, facts: Facts, *, default: int) -> SamplingParams:
    """`params`, with the API's default of most tokens where the caller gave none; less if the context ends sooner."""
    if params.max_tokens is not None:
        return params
    room = max(facts.max_model_len - facts.begun(len(prompt.tokens)), 1)
    return msgspec.structs.replace(params, max_tokens=max(min(default, room), params.min_tokens))


def clipped(params: SamplingParams, room: int) -> SamplingParams:
    """`params` with no more tokens than the context has room for, but for one, of which the engine says what is wrong."""
    if params.max_tokens is None or params.max_tokens <= room:
        return params
    return msgspec.structs.replace(params, max_tokens=max(room, 1))


THINNED = b"x-sapwood-speculative-prefill"
"""The header of answers to prompts of which only this share may have been computed."""


def _tell_of_thinning(front: Front, choices: Sequence[Choice]) -> None:
    """A header, where some of the prompts' tokens may be left out."""
    keep = front.config.speculation.speculative_prefill
    lossy = any(not (choice.prompt.scoring or choice.params.whole_prompt) for choice in choices)
    if keep is not None and keep < 1 and lossy and front.passage is not None:
        front.passage.told.append((THINNED, str(keep).encode()))


async def generate(front: Front, choices: Sequence[Choice], hand_on: HandOn) -> None:
    """Run the choices side by side to their ends; leaving earlier aborts those that still run.

    `hand_on` gets what is new in all of them together. While the task that it returned is not done, nothing is handed
    on; what comes meanwhile is merged. Raises what the engine refuses or ends a choice with, and what `hand_on` raises.
    The parameters have been checked. Many choices begin a few at a time, so that others come in between; nothing is
    handed on before all have begun.
    """
    with charged(front, choices):
        if choices and (passage := front.passage) is not None and passage.explains:
            prompt = choices[0].prompt
            adapter = prompt.adapter or passage.adapter
            id = "" if adapter is None else adapter.adapter.id
            why = await explained(front, prompt, passage.account.tenant, adapter=id)
            passage.told = [*(one for one in passage.told if one[0] != ANSWER), (ANSWER, why)]
        _tell_of_thinning(front, choices)
        await _generate(front, choices, hand_on)


async def _generate(front: Front, choices: Sequence[Choice], hand_on: HandOn) -> None:
    feed = _Feed(front, hand_on)
    try:
        until = perf_counter() + TURN_SECONDS
        for choice in choices:
            if perf_counter() > until:
                await asyncio.sleep(0)
                until = perf_counter() + TURN_SECONDS
            feed.open(choice)
        feed.begin()
        await feed.over
    finally:
        feed.close()


@contextmanager
def charged(front: Front, choices: Sequence[Choice]) -> Iterator[None]:
    """Around the choices of a request: what they use is on the account of its key. Raises LimitReached if it may not have so much."""
    account = front.account
    prompts = sum(len(prompt.tokens) for prompt in {choice.prompt: None for choice in choices})
    with account.generating(prompts + sum(choice.params.max_tokens or _LIKELY for choice in choices)) as used:
        try:
            yield
        finally:
            outputs = sum(len(choice.tokens) for choice in choices)
            used.tokens = prompts + outputs
            front.metrics.used(account.tenant.name, prompts, outputs)


async def complete(front: Front, choices: Sequence[Choice]) -> None:
    """Run the choices to their ends."""
    await generate(front, choices, lambda news: None)


class _Run:
    """A choice while it runs."""

    __slots__ = ("_engine", "_flights", "assembler", "choice", "failed", "meter", "stream")

    def __init__(self, front: Front, choice: Choice) -> None:
        self.choice = choice
        self.assembler = front.text.assembler(choice.params, shown=choice.prompt.shown)
        self.meter = front.metrics.meter(len(choice.prompt.tokens), choice.params)
        self.stream: Stream | None = None
        self.failed = False
        self._engine, self._flights = front.engine, front.flights

    def take(self) -> News | None:
        assert self.stream is not None
        try:
            delta = self.stream.take()
            if delta is None:
                return None
            if delta.tokens:
                self.meter.tokens(len(delta.tokens), waited=delta.waited)
            news = self.choice.take(delta, self.assembler)
            if self.choice.finish is not None:
                ended = delta.finish is not None  # by the engine; else by us, just now
                self.choice.weight_version = delta.weight_version if ended else self._engine.weight_version
            return news
        except SapwoodError:
            self.failed = True
            raise

    def close(self) -> None:
        """Stop strings are found here, where there is text; closing the engine's stream then aborts."""
        if self.stream is not None:
            self._flights.remove(self.stream)
            self.stream.close()
        reason = "error" if self.failed else self.choice.finish or "abort"
        self.meter.end(reason, num_cached_tokens=self.choice.num_cached_tokens)


class _Feed:
    """Follows the choices of one HTTP request. All happens in `wake`, within the engine's call: no task per token."""

    def __init__(self, front: Front, hand_on: HandOn) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._front = front
        self._hand_on = hand_on
        self._runs: list[_Run] = []
        self._waiting: asyncio.Task[None] | None = None  # for the client to take what it was sent
        self._begun = False

    def open(self, choice: Choice) -> None:
        run = _Run(self._front, choice)
        self._runs.append(run)
        prompt, tenant = choice.prompt, self._front.account.tenant
        adapter, passage = prompt.adapter or self._front.adapter, self._front.passage
        try:
            tokens, media = prompt.given()
            run.stream = self._front.engine.submit(
                tokens,
                choice.params,
                self,
                salt=tenant.salted(prompt.salt),
                adapter=None if adapter is None else adapter.adapter,
                priority=tenant.ranked(prompt.priority),
                tenant=tenant.name,
                weight=tenant.weight,
                checked=True,
                task=prompt.task,
                media=media,
                spans=prompt.spans,
                handoff=None if passage is None else passage.handoff,
            )
            self._front.flights.add(run.stream, prompt.names)
        except RequestError as error:
            run.failed = True
            if error.param == "prompt":
                raise with_param(error, prompt.param) from None
            raise respelled(error, {"max_tokens": prompt.limit_param}) from None
        except SapwoodError:
            run.failed = True
            raise

    def begin(self) -> None:
        """All choices have been opened."""
        self._begun = True
        self.wake()

    def wake(self) -> None:
        if not self._begun or self._waiting is not None or self.over.done():
            return
        try:
            news = [fresh for run in self._runs if (fresh := run.take()) is not None]
            for fresh in news:
                if fresh.choice.finish is not None:
                    self._end(fresh.choice)
            if news and (waiting := self._hand_on(news)) is not None:
                self._waiting = waiting
                waiting.add_done_callback(self._resume)
            elif not self._runs:
                self.over.set_result(None)
        except Exception as error:
            self.over.set_exception(error)

    def _end(self, choice: Choice) -> None:
        run = next(run for run in self._runs if run.choice is choice)
        self._runs.remove(run)
        run.close()

    def _resume(self, waited: asyncio.Task[None]) -> None:
        """The client has caught up."""
        self._waiting = None
        error = None if waited.cancelled() else waited.exception()
        if self.over.done():
            return
        if error is not None:
            self.over.set_exception(error)
        elif self._runs:
            self.wake()
        else:
            self.over.set_result(None)

    def close(self) -> None:
        if self.over.done() and not self.over.cancelled():
            self.over.exception()  # seen, even if its request was cancelled first
        if self._waiting is not None:
            self._waiting.cancel()
        for run in self._runs:
            run.close()
        self._runs.clear()
