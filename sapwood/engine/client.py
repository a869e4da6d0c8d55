"""The engine as a front sees it: submit tokens, follow what comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import msgspec

from sapwood.base.adapter import Adapter
from sapwood.base.errors import EngineDead, GenerationFailed, Overloaded
from sapwood.base.handoff import Handoff
from sapwood.base.insight import join
from sapwood.base.media import Media, Span, check_kinds
from sapwood.base.sampling import SEED_LIMIT, SamplingParams
from sapwood.base.task import GENERATE, Task
from sapwood.base.weights import FIRST
from sapwood.base.wire import Abort, Control, Delta, Deltas, Facts, FromEngine, Reply, Stats, Submit, ToEngine
from sapwood.engine.checks import check_request as check_request
from sapwood.engine.checks import check_task as check_task
from sapwood.engine.checks import fed
from sapwood.engine.following import generated, wake
from sapwood.engine.pace import Pace
from sapwood.engine.vitals import Vitals

ANSWER_SECONDS = 5.0  # for an engine that is asked whether it lives, and has nothing else to do


class Follower(Protocol):
    """Who follows generations, one or many."""

    def wake(self) -> None:
        """There are news to take. Called once for all that arrived together; must be quick and must not raise."""
        ...


class Stream:
    """One generation on its way to its follower. News that have not been taken yet are merged.

    A follower that takes its time costs no more than the tokens it has not taken. `leave` is called when the follower
    leaves, be the generation finished or not.
    """

    __slots__ = ("_failure", "_leave", "_news", "_tokens", "finished", "follower", "id")

    def __init__(self, id: int, follower: Follower, leave: Callable[[Stream], None]) -> None:
        self.id = id
        self.follower = follower
        self.finished = False  # nothing more will come
        self._leave: Callable[[Stream], None] | None = leave
        self._tokens: list[int] = []  # of all news
        self._news: list[Delta] = []  # those that are more than a token
        self._failure: Exception | None = None

    def put_token(self, token: int) -> None:
        self._tokens.append(token)

    def put(self, delta: Delta) -> None:
        if delta.finish == "error":
            self.fail(GenerationFailed(delta.error or "the generation failed"))
            return
        if delta.finish == "abort":
            self.fail(Overloaded(delta.error or "the generation was ended by the server; try again later."))
            return
        self._tokens += delta.tokens
        self._news.append(delta)
        self.finished = delta.finish is not None

    def cut(self) -> None:
        """End here, as aborted, with what has come. The engine hears of it when the follower leaves."""
        if not self.finished:
            self._news.append(Delta(self.id, [], finish="abort"))
            self.follower.wake()

    def fail(self, failure: Exception) -> None:
        """End with an error, which the next `take` raises."""
        self._failure = failure
        self.finished = True

    def take(self) -> Delta | None:
        """All that has come since the last time as one delta, None if nothing has.

        Raises GenerationFailed when the request has failed inside, Overloaded when the engine has given it up, and
        EngineDead when the engine is gone; what came before that and was not taken is lost.
        """
        if self._failure is not None:
            raise self._failure
        tokens, news = self._tokens, self._news
        if not (tokens or news):
            return None
        self._tokens = []
        if not news:
            return Delta(self.id, tokens)
        self._news = []
        first, last = news[0], next((delta for delta in news if delta.finish is not None), news[-1])
        logprobs = [one for delta in news for one in delta.logprobs or ()]
        return Delta(
            self.id,
            tokens,
            finish=last.finish,
            cached_tokens=first.cached_tokens,
            stop=last.stop,
            error=last.error,
            logprobs=logprobs or None,
            prompt_logprobs=first.prompt_logprobs,
            waited=first.waited,
            drafted=last.drafted,
            vector=last.vector,
            weight_version=last.weight_version,
            left_out=first.left_out,
            insights=join([delta.insights for delta in news]),
        )

    def close(self) -> None:
        """Leave the generation; one that has not finished is aborted. May be called again."""
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave(self)


class EngineClient(Protocol):
    """What servers and command lines need of an engine, wherever it runs.

    Attributes:
        changed: Called when it has died, and when there is another in its place.
    """

    changed: Callable[[], None]

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

    @property
    def retry_after(self) -> float | None:
        """Of an engine that is gone: seconds until there should be another, None if there will be none."""
        ...

    @property
    def restarts(self) -> int:
        """How often it has been started again."""
        ...

    @property
    def replicas(self) -> Sequence[EngineClient]:
        """The engines that there are behind this face: itself, or several that hold the same model."""
        ...

    @property
    def weight_version(self) -> str:
        """That of the weights that compute what comes next."""
        ...

    async def trouble(self) -> str | None:
        """Why it cannot be counted on now: it is gone, or does not answer; None if it is well. Takes a few seconds at most."""
        ...

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        follower: Follower,
        *,
        salt: str = "",
        adapter: Adapter | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        checked: bool = False,
        task: Task = GENERATE,
        media: Sequence[Media] = (),
        spans: Sequence[Span] = (),
        handoff: Handoff | None = None,
    ) -> Stream:
        """Begin a generation; `follower` is woken when there is something to take, and closes the stream in the end. `checked`:
        the parameters have been (`SamplingParams.check`), once for all generations that share them. What is no generation ends
        with one delta, which has its `vector`. `media` go to the model's encoder, and stand where `spans` say. `handoff`
        tells of another engine that computes the prompt, or is to go on with it.

        Raises RequestError for what cannot be served, Overloaded when too much is waiting, EngineDead when the engine
        is gone.
        """
        ...

    async def control(self, what: str, about: dict[str, Any] | None = None) -> dict[str, Any]: ...


def copies(params: SamplingParams) -> list[SamplingParams]:
    """The `n` independent generations that a caller asks for: one each, with seeds that follow from the caller's."""
    first = msgspec.structs.replace(params, n=1)
    if params.seed is None:
        return [first] * params.n
    seeds = ((params.seed + i) % (2 * SEED_LIMIT) for i in range(1, params.n))
    return [first, *(msgspec.structs.replace(first, seed=seed) for seed in seeds)]


class AsyncEngine:
    """An engine behind a pair of message queues: `send` takes messages to it, `receive` is fed with what it says.

    `send` must not wait; it raises EngineDead if the message cannot arrive. `max_live` bounds the requests that are
    running or waiting; above it `submit` raises Overloaded, and while the engine sleeps, if it is `shut` then.
    """

    def __init__(self, send: Callable[[ToEngine], None], facts: Facts, *, max_live: int, shut: bool = False) -> None:
        self.facts = facts
        self.stats: Stats | None = None
        self.dead: str | None = None
        self.lost = asyncio.Event()  # it is dead, and no other will come
        self.restarts, self.weight_version, self.asleep = 0, FIRST, False
        self.vitals = Vitals()
        self.changed: Callable[[], None] = lambda: None  # called when it has died, and when there is another
        self._back = 0.0  # when another should be there
        self._probe: asyncio.Task[None] | None = None
        self._probed = 0.0
        self._pace = Pace()
        self._send = send
        self._max_live, self._shut = max_live, shut
        self._numbers = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def end_at(self, eos_ids: Iterable[int]) -> None:
        """Tell which tokens end an output; the tokenizer's side of the model knows."""
        self.facts = msgspec.structs.replace(self.facts, eos_ids=list(eos_ids))

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        follower: Follower,
        *,
        salt: str = "",
        adapter: Adapter | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        checked: bool = False,
        task: Task = GENERATE,
        media: Sequence[Media] = (),
        spans: Sequence[Span] = (),
        handoff: Handoff | None = None,
    ) -> Stream:
        """See `EngineClient.submit`."""
        assert params.n == 1, "copies() makes n requests of one"
        check_kinds(media, self.facts.media)
        tokens, media = fed(tokens, params, media, self.facts, checked=checked, task=task)
        self._check_alive()
        if self.asleep and self._shut:
            raise Overloaded("the engine sleeps (--while-asleep refuse); try again when it has been woken.")
        if self.full:
            raise Overloaded(
                f"{len(self._streams)} requests are running or waiting already; try again later.",
                retry_after=self._pace.seconds(len(self._streams) + 1 - self.facts.max_num_seqs),
            )
        stop_ids = list(params.stop_token_ids) + ([] if params.ignore_eos else self.facts.eos_ids)
        message = Submit(
            next(self._numbers),
            tokens,
            params,
            stop_ids,
            salt,
            adapter,
            priority,
            tenant,
            weight,
            task,
            list(media),
            list(spans),
            handoff,
        )
        self._send(message)
        stream = self._streams[message.id] = Stream(message.id, follower, self._leave)
        self.vitals.ask()
        return stream

    def generate(self, tokens: list[int], params: SamplingParams, **how: Any) -> AsyncGenerator[Delta]:
        """See `generated`."""
        return generated(self, tokens, params, **how)

    @property
    def replicas(self) -> Sequence[EngineClient]:
        """See `EngineClient.replicas`."""
        return (self,)

    @property
    def live(self) -> int:
        """Requests that run or wait."""
        return len(self._streams)

    @property
    def full(self) -> bool:
        """Whether `submit` would raise Overloaded."""
        return len(self._streams) >= self._max_live

    def _leave(self, stream: Stream) -> None:
        del self._streams[stream.id]
        if stream.finished:
            self._pace.ended()
        if not stream.finished and self.dead is None:
            with contextlib.suppress(EngineDead):  # the engine is going anyway
                self._send(Abort([stream.id]))

    async def control(self, what: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the engine; see `wire.Control`."""
        self._check_alive()
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.vitals.ask()
        try:
            self._send(Control(number, what, about or {}))
            return await answer
        finally:
            del self._asked[number]

    def receive(self, messages: Iterable[FromEngine]) -> None:
        """Hand messages on to whom they concern, then wake everybody who has news, each once."""
        woken: dict[Follower, None] = {}
        streams, message = self._streams, None
        for message in messages:
            match message:
                case Deltas(ids, tokens, deltas):
                    for id, token in zip(ids, tokens, strict=True):
                        if stream := streams.get(id):
                            stream.put_token(token)
                            woken[stream.follower] = None
                    for delta in deltas:
                        if stream := streams.get(delta.id):
                            stream.put(delta)
                            woken[stream.follower] = None
                case Stats():
                    self.stats = message
                case Reply(id, body):
                    wake(woken)  # those before what it tells of
                    self._learn(body)
                    if (answer := self._asked.get(id)) and not answer.done():
                        answer.set_result(body)
        if message is not None:
            self.vitals.hear(message)
        wake(woken)

    def _learn(self, told: Mapping[str, Any]) -> None:
        """What answers say of the engine's state."""
        self.weight_version = told.get("weight_version", self.weight_version)
        self.asleep = bool(told.get("asleep", self.asleep))

    async def awaited(self) -> None:
        """Wait until somebody waits for something of the engine."""
        while not (self._streams or self._asked):
            self.vitals.rest()
            await self.vitals.awaited()

    async def trouble(self) -> str | None:
        """See `EngineClient.trouble`. An engine of which nothing was heard lately is asked, once for all who want to know."""
        if self.dead is None and not self.vitals.fresh:
            if self._probe is None or self._probe.done():
                self._probe, self._probed = asyncio.create_task(self._ask()), monotonic()
            await asyncio.wait([self._probe], timeout=max(self._probed + ANSWER_SECONDS - monotonic(), 0.0))
            if self.dead is None and not self.vitals.fresh:
                return f"nothing has been heard of the engine for {monotonic() - self.vitals.heard:.0f} s, nor does it answer"
        return self.dead

    async def _ask(self) -> None:
        with contextlib.suppress(EngineDead):
            await self.control("status")

    @property
    def retry_after(self) -> float | None:
        """See `EngineClient.retry_after`."""
        return None if self.dead is None or self.lost.is_set() else max(self._back - monotonic(), 1.0)

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise self._death()

    def _death(self) -> EngineDead:
        after = self.retry_after
        return EngineDead(f"{self.dead}{'' if after is None else '; it is started again'}", retry_after=after)

    def revive(self, send: Callable[[ToEngine], None], facts: Facts) -> None:
        """There is another engine in the place of the one that has died."""
        self.facts = msgspec.structs.replace(facts, eos_ids=self.facts.eos_ids)
        self._send, self.stats, self.dead = send, None, None
        self.weight_version, self.asleep = FIRST, False
        self.restarts += 1
        self.vitals.begin()
        self.changed()

    def die(self, why: str, back_in: float | None = None) -> None:
        """End everything that is waiting for the engine. `back_in`: seconds until there should be another, if there will be."""
        self.dead, self._back = why, monotonic() + (back_in or 0.0)
        if back_in is None:
            self.lost.set()
        streams = [stream for stream in self._streams.values() if not stream.finished]
        for stream in streams:
            stream.fail(self._death())
        for follower in dict.fromkeys(stream.follower for stream in streams):
            follower.wake()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._death())
        self.changed()
