"""The outputs of one HTTP request as they grow, one or many, whatever the API that asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from sapwood.base.errors import Overloaded, RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta
from sapwood.engine.client import copies
from sapwood.server.errors import GenerationFailed, respelled
from sapwood.server.front import MAX_CHOICES, Front


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids, what the caller calls them, and where the prefix cache may look for them."""

    tokens: list[int]
    param: str
    salt: str = ""
    priority: int = 0


@dataclass(slots=True, eq=False)
class Choice:
    """One output. `finish` is None while it grows, then 'stop' or 'length'; `stop` what stopped it.

    `scoring` asks for the prompt's logprobs only: one token is generated, as the engine needs, and dropped.
    """

    index: int
    prompt: Prompt
    params: SamplingParams
    scoring: bool = False
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish: str | None = None
    stop: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(slots=True, eq=False)
class News:
    """What has come since the last news of a choice. `first` marks its first."""

    choice: Choice
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    first: bool


def choices_of(prompts: Sequence[tuple[Prompt, SamplingParams]], *, scoring: bool = False) -> list[Choice]:
    """The outputs that prompts ask for, n for each, numbered through. Raises RequestError if they are too many."""
    total = sum(params.n for _, params in prompts)
    if total > MAX_CHOICES:
        param = "n" if len(prompts) == 1 else prompts[0][0].param
        raise RequestError(f"{total} outputs in one request are too many; at most {MAX_CHOICES}.", param=param)
    pairs = [(prompt, one) for prompt, params in prompts for one in copies(params)]
    return [Choice(index, prompt, params, scoring) for index, (prompt, params) in enumerate(pairs)]


async def generate(front: Front, choices: Sequence[Choice]) -> AsyncGenerator[list[News]]:
    """Run the choices side by side; yield what is ready, together. Closing it aborts those that still run."""
    if len(choices) == 1:
        async with aclosing(_follow(front, choices[0])) as source:
            async for news in source:
                yield [news]
        return
    ready: asyncio.Queue[News | asyncio.Task[None]] = asyncio.Queue()

    async def drain(choice: Choice) -> None:
        async with aclosing(_follow(front, choice)) as source:
            async for news in source:
                ready.put_nowait(news)

    tasks = {asyncio.create_task(drain(choice)) for choice in choices}
    try:
        for task in tasks:
            task.add_done_callback(ready.put_nowait)
        running = len(tasks)
        while running:
            batch = []
            item: News | asyncio.Task[None] | None = await ready.get()
            while item is not None:
                if isinstance(item, News):
                    batch.append(item)
                else:
                    item.result()
                    running -= 1
                item = None if ready.empty() else ready.get_nowait()
            if batch:
                yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def complete(front: Front, choices: Sequence[Choice]) -> None:
    """Run the choices to their ends."""
    async with aclosing(generate(front, choices)) as batches:
        async for _ in batches:
            pass


async def _follow(front: Front, choice: Choice) -> AsyncGenerator[News]:
    """Run one choice. Stop strings are found here, where there is text; closing the engine's generator then aborts."""
    prompt = choice.prompt
    stream = front.text.stream(choice.params)
    meter = front.metrics.meter(len(prompt.tokens))
    reason = "abort"
    try:
        deltas = front.engine.generate(prompt.tokens, choice.params, salt=prompt.salt, priority=prompt.priority)
        async with aclosing(cast(AsyncGenerator[Delta], deltas)) as source:
            first = True
            async for delta in source:
                if delta.finish in ("error", "abort"):
                    reason = delta.finish
                    _fail(delta)
                if delta.tokens:
                    meter.tokens(len(delta.tokens))
                elif delta.finish is None:
                    _note(choice, delta)
                    continue
                _note(choice, delta)
                shown = delta.tokens
                if delta.stop is not None and not choice.params.include_stop:
                    shown = shown[:-1]  # the token that ended it is no text
                piece = stream.push(shown)
                text = piece.text
                if piece.stop is not None:
                    choice.finish, choice.stop = "stop", piece.stop
                elif delta.finish is not None:
                    text += stream.finish()
                    choice.finish, choice.stop = _ending(delta, stream.stop)
                news = News(choice, text, delta.tokens, delta.logprobs or [], first)
                if choice.scoring:
                    choice.finish, choice.stop = "length", None
                    news = News(choice, "", [], [], first)
                choice.texts.append(news.text)
                choice.tokens += news.tokens
                choice.logprobs += news.logprobs
                reason = choice.finish or reason
                first = False
                yield news
                if choice.finish is not None:
                    return
    except RequestError as error:
        reason = "error"
        raise respelled(error, {"prompt": prompt.param, "tokens": prompt.param, "": prompt.param}) from None
    finally:
        meter.end(reason, num_cached_tokens=choice.num_cached_tokens)


def _note(choice: Choice, delta: Delta) -> None:
    """Take down what a delta says of the prompt."""
    if delta.cached_tokens >= 0:
        choice.num_cached_tokens = delta.cached_tokens
    if delta.prompt_logprobs:
        choice.prompt_logprobs += delta.prompt_logprobs


def _ending(delta: Delta, stop: str | None) -> tuple[str, int | str | None]:
    """Why an output ended; a stop string may only show in the text that was held back until the end."""
    if stop is not None:
        return "stop", stop
    return delta.finish or "stop", delta.stop


def _fail(delta: Delta) -> None:
    if delta.finish == "abort":
        raise Overloaded(delta.error or "The generation was aborted by the server.")
    raise GenerationFailed(delta.error or "The generation failed.")
