"""The engine as a front sees it: submit tokens, follow what comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec
import zmq

from sapwood.base.errors import EngineDead, GenerationFailed, Overloaded, RequestError
from sapwood.base.sampling import SEED_LIMIT, SamplingParams
from sapwood.base.wire import Abort, Control, Delta, Deltas, Facts, FromEngine, Reply, Stats, Submit, ToEngine


class Engine(Protocol):
    """What servers and command lines need of an engine, wherever it runs."""

    @property
    def facts(self) -> Facts: ...

    @property
    def stats(self) -> Stats | None:
        """The latest heartbeat, None before the first."""
        ...

    @property
    def dead(self) -> str | None:
        """Why the engine is gone, None while it lives."""
        ...

    def generate(
        self, tokens: list[int], params: SamplingParams, *, salt: str = "", adapter: str = "", priority: int = 0
    ) -> AsyncGenerator[Delta]:
        """Follow one generation to its end; closing the generator aborts it."""
        ...

    async def control(self, what: str) -> dict[str, Any]: ...


def copies(params: SamplingParams) -> list[SamplingParams]:
    """The `n` independent generations that a caller asks for: one each, with seeds that follow from the caller's."""
    first = msgspec.structs.replace(params, n=1)
    if params.seed is None:
        return [first] * params.n
    seeds = ((params.seed + i) % (2 * SEED_LIMIT) for i in range(1, params.n))
    return [first, *(msgspec.structs.replace(first, seed=seed) for seed in seeds)]


def check_request(tokens: list[int], params: SamplingParams, facts: Facts) -> None:
    """Raise RequestError, naming the field, for what the engine could not serve."""
    params.check(vocab_size=facts.vocab_size)
    if not tokens:
        raise RequestError("the prompt is empty; it needs at least one token.", param="prompt")
    if len(tokens) >= facts.max_model_len:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens; this model takes at most {facts.max_model_len - 1} and one of output.",
            param="prompt",
            code="context_length_exceeded",
        )
    if params.max_tokens is not None and len(tokens) + params.max_tokens > facts.max_model_len:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens, so max_tokens can be at most {facts.max_model_len - len(tokens)} "
            f"(context {facts.max_model_len}), got {params.max_tokens}.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    worst = min(tokens), max(tokens)
    if worst[0] < 0 or worst[1] >= facts.vocab_size:
        bad = worst[0] if worst[0] < 0 else worst[1]
        raise RequestError(f"token id {bad} is outside the vocabulary [0, {facts.vocab_size}).", param="prompt")


class Stream:
    """News of one request on their way to who follows it. News that nobody has taken yet are merged."""

    __slots__ = ("_arrived", "_news")

    def __init__(self) -> None:
        self._news: list[Delta] = []
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self._news.append(delta)
        self._arrived.set()

    async def take(self) -> Delta:
        await self._arrived.wait()
        self._arrived.clear()
        news, self._news = self._news, []
        return merged(news)


def merged(news: list[Delta]) -> Delta:
    """Several news of one request as one."""
    first, last = news[0], news[-1]
    if len(news) == 1:
        return first
    logprobs = [one for delta in news for one in delta.logprobs or ()]
    return Delta(
        first.id,
        [token for delta in news for token in delta.tokens],
        finish=last.finish,
        cached_tokens=first.cached_tokens,
        stop=last.stop,
        error=last.error,
        logprobs=logprobs or None,
        prompt_logprobs=first.prompt_logprobs,
    )


class AsyncEngine:
    """An engine behind a pair of message queues: `send` takes messages to it, `receive` is fed with what it says.

    `max_live` bounds the requests that are running or waiting; above it `generate` raises Overloaded.
    """

    def __init__(self, send: Callable[[ToEngine], Awaitable[None]], facts: Facts, *, max_live: int) -> None:
        self.facts = facts
        self.stats: Stats | None = None
        self.dead: str | None = None
        self._send = send
        self._max_live = max_live
        self._numbers = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._aborting: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    def end_at(self, eos_ids: Iterable[int]) -> None:
        """Tell which tokens end an output; the tokenizer's side of the model knows."""
        self.facts = msgspec.structs.replace(self.facts, eos_ids=list(eos_ids))

    async def generate(
        self, tokens: list[int], params: SamplingParams, *, salt: str = "", adapter: str = "", priority: int = 0
    ) -> AsyncGenerator[Delta]:
        """Yield the generation's news until the one with `finish` 'stop' or 'length'.

        Raises RequestError for what cannot be served, Overloaded when too much is waiting, EngineDead when the engine
        is gone or goes, GenerationFailed when the request fails inside. Closing the generator aborts the request.
        """
        assert params.n == 1, "copies() makes n requests of one"
        check_request(tokens, params, self.facts)
        if self.dead is not None:
            raise EngineDead(self.dead)
        if len(self._streams) >= self._max_live:
            raise Overloaded(f"{len(self._streams)} requests are running or waiting already; try again later.")
        stop_ids = list(params.stop_token_ids) + ([] if params.ignore_eos else self.facts.eos_ids)
        message = Submit(next(self._numbers), tokens, params, stop_ids, salt, adapter, priority)
        stream = self._streams[message.id] = Stream()
        finished = False
        try:
            await self._send(message)
            while not finished:
                delta = await stream.take()
                if delta.finish == "error":
                    finished = True
                    if self.dead is not None:
                        raise EngineDead(self.dead)
                    raise GenerationFailed(delta.error)
                finished = delta.finish is not None
                yield delta
        finally:
            del self._streams[message.id]
            if not finished and self.dead is None:
                self._abort(message.id)

    def _abort(self, id: int) -> None:
        """Tell the engine without waiting: who closes a generation may be cancelled itself."""
        with contextlib.suppress(RuntimeError):  # the event loop is closing, and the engine with it
            task = asyncio.get_running_loop().create_task(_quietly(self._send(Abort([id]))))
            self._aborting.add(task)
            task.add_done_callback(self._aborting.discard)

    async def control(self, what: str) -> dict[str, Any]:
        """Ask the engine; see `wire.Control`."""
        if self.dead is not None:
            raise EngineDead(self.dead)
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            await self._send(Control(number, what))
            return await answer
        finally:
            del self._asked[number]

    def receive(self, message: FromEngine) -> None:
        """Hand a message on to whom it concerns."""
        match message:
            case Deltas(ids, tokens, deltas):
                for id, token in zip(ids, tokens, strict=True):
                    if stream := self._streams.get(id):
                        stream.put(Delta(id, [token]))
                for delta in deltas:
                    if stream := self._streams.get(delta.id):
                        stream.put(delta)
            case Stats():
                self.stats = message
            case Reply(id, body):
                if (answer := self._asked.get(id)) and not answer.done():
                    answer.set_result(body)

    def die(self, why: str) -> None:
        """End everything that is waiting for the engine."""
        if self.dead is not None:
            return
        self.dead = why
        for id, stream in self._streams.items():
            stream.put(Delta(id, [], finish="error", error=why))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(EngineDead(why))


async def _quietly(sending: Awaitable[None]) -> None:
    with contextlib.suppress(zmq.ZMQError, EngineDead):  # the engine is going anyway
        await sending
