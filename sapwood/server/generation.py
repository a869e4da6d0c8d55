"""The outputs of one HTTP request as they grow, one or many, whatever the API that asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from sapwood.base.errors import GenerationFailed, Overloaded, RequestError, SapwoodError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta
from sapwood.engine.client import copies
from sapwood.server.errors import respelled, with_param
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.text import TextStream


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids, and where the prefix cache may look for them.

    `param` and `limit_param` are what the caller calls the prompt and the most tokens to generate. `scoring` asks for the prompt's logprobs only: one token is generated, as the engine needs, and dropped.
    """

    tokens: list[int]
    param: str
    salt: str = ""
    priority: int = 0
    limit_param: str = "max_tokens"
    scoring: bool = False


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
    """One output. `finish` is None while it grows, then 'stop' or 'length'; `stop` what stopped it."""

    index: int
    prompt: Prompt
    params: SamplingParams
    begun: bool = False
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

    def take(self, delta: Delta, stream: TextStream) -> News | None:
        """Add a delta; None if it tells of the prompt only. Raises what the engine ended the generation with."""
        if delta.finish == "abort":
            raise Overloaded(delta.error or "The generation was aborted by the server.")
        if delta.finish == "error":
            raise GenerationFailed(delta.error or "The generation failed.")
        if delta.cached_tokens >= 0:
            self.num_cached_tokens = delta.cached_tokens
        if delta.prompt_logprobs:
            self.prompt_logprobs += delta.prompt_logprobs
        if not delta.tokens and delta.finish is None:
            return None
        first, self.begun = not self.begun, True
        if self.prompt.scoring:
            self.finish = "length"
            return News(self, "", [], [], first)
        news = News(self, self._text(delta, stream), delta.tokens, delta.logprobs or [], first)
        self.texts.append(news.text)
        self.tokens += news.tokens
        self.logprobs += news.logprobs
        return news

    def _text(self, delta: Delta, stream: TextStream) -> str:
        """The text that a delta makes certain. Notes the end, be it the engine's or a stop string."""
        tokens = delta.tokens
        if delta.stop is not None and not self.params.include_stop:
            tokens = tokens[:-1]  # the token that ended it is no text
        text = stream.push(tokens).text
        if stream.stop is None and delta.finish is not None:
            text += stream.finish()
            self.finish, self.stop = delta.finish, delta.stop
        if stream.stop is not None:  # it may have shown only in what was held back until the end
            self.finish, self.stop = "stop", stream.stop
        return text


def choices_of(prompts: Sequence[tuple[Prompt, SamplingParams]]) -> list[Choice]:
    """The outputs that prompts ask for, n for each, numbered through. Raises RequestError if they are too many."""
    total = sum(params.n for _, params in prompts)
    if total > MAX_CHOICES:
        param = "n" if len(prompts) == 1 else prompts[0][0].param
        raise RequestError(f"{total} outputs in one request are too many; at most {MAX_CHOICES}.", param=param)
    pairs = [(prompt, one) for prompt, params in prompts for one in copies(params)]
    return [Choice(index, prompt, params) for index, (prompt, params) in enumerate(pairs)]


def params_for(prompt: Prompt, params: SamplingParams, max_model_len: int, *, default: int) -> SamplingParams:
    """`params`, with the API's default of most tokens where the caller gave none; less if the context ends sooner."""
    if params.max_tokens is not None:
        return params
    room = max(max_model_len - len(prompt.tokens), 1)
    return msgspec.structs.replace(params, max_tokens=max(min(default, room), params.min_tokens))


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
    failed = False
    try:
        deltas = front.engine.generate(prompt.tokens, choice.params, salt=prompt.salt, priority=prompt.priority)
        async with aclosing(deltas) as source:
            async for delta in source:
                if delta.tokens:
                    meter.tokens(len(delta.tokens))
                news = choice.take(delta, stream)
                if news is not None:
                    yield news
                if choice.finish is not None:
                    break
    except RequestError as error:
        failed = True
        if error.param == "prompt":
            raise with_param(error, prompt.param) from None
        raise respelled(error, {"max_tokens": prompt.limit_param}) from None
    except SapwoodError:
        failed = True
        raise
    finally:
        meter.end("error" if failed else choice.finish or "abort", num_cached_tokens=choice.num_cached_tokens)
