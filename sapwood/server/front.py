"""What all endpoints share: the engine, the text side, and turning requests into token ids off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.types import Receive

from sapwood import __version__
from sapwood.adapters.registry import Known
from sapwood.base.errors import ConfigError, GrammarError, RequestError
from sapwood.base.media import Media, Span
from sapwood.base.sampling import MAX_FORBIDDEN, SamplingParams
from sapwood.base.task import Generate
from sapwood.base.tokens import check_ids
from sapwood.base.wire import Facts
from sapwood.config import Config
from sapwood.config.option import names_in
from sapwood.engine.client import EngineClient, check_task
from sapwood.grammar import Checker
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Asked
from sapwood.grammar.vocabulary import spec_of
from sapwood.grammar.words import first_words
from sapwood.hub.about import About
from sapwood.images.gallery import TEXT_ONLY, Cabinet
from sapwood.observe.observer import Observer
from sapwood.server.adapters import Adapters
from sapwood.server.auth import Guard
from sapwood.server.deadlines import Deadlines
from sapwood.server.drain import Drain
from sapwood.server.errors import ClientGone, respelled, with_param
from sapwood.server.flights import Flights
from sapwood.server.handoff import Handing
from sapwood.server.limits import Account
from sapwood.server.passage import Passage
from sapwood.server.pictures import shown_in
from sapwood.server.prefixes import Stable
from sapwood.server.store import Store
from sapwood.server.turns import Turns
from sapwood.text import TextModel
from sapwood.text.model import Thoughts
from sapwood.text.reading import Reader

T = TypeVar("T")

MAX_CHOICES = 1024  # outputs of one HTTP request: prompts times n
MAX_N = 128

_SHORT = 4096  # characters that are tokenised sooner than a thread takes over
_PER_TEXT = 128  # of them, about, that one text more takes as long as
_MAX_CHARS_PER_TOKEN = 256  # no vocabulary has a longer token, so a text longer than this a token cannot fit
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation that is to become a prompt.

    Attributes:
        messages: As templates take them.
        continues: The last message is left open.
        answers: The beginning of an answer follows.
        add_special: The prompt is framed by the tokenizer, not only by the template.
        template: More arguments of the template.
        param: What the caller calls it.
    """

    messages: list[dict[str, Any]]
    continues: bool = False
    answers: bool = True
    add_special: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
    param: str = "messages"


class Rendered(NamedTuple):
    """A conversation as a prompt, whether an answer to it begins with thoughts, and its images with their places."""

    tokens: list[int]
    thoughts: Thoughts
    media: tuple[Media, ...] = ()
    spans: tuple[Span, ...] = ()


def _numbers(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own sampling values. Raises ConfigError for what is no number."""
    values = {name: generation_config[name] for name in _DEFAULTS if generation_config.get(name) is not None}
    for name, value in values.items():
        whole = name == "top_k"
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != value // 1):
            raise ConfigError(
                f"generation_config.json: {name} must be a {'whole ' * whole}number, got {value!r}. "
                "Correct the value, or remove it."
            )
    return values | ({"top_k": int(values["top_k"])} if "top_k" in values else {})


class Front:
    """One server's shared state. `defaults` are the sampling values of requests that bring none."""

    def __init__(
        self,
        engine: EngineClient,
        text: TextModel,
        config: Config,
        model_names: Sequence[str],
        *,
        observer: Observer,
        defaults: Mapping[str, Any],
        about: About,
        gallery: Cabinet | str = TEXT_ONLY,
        guard: Guard | None = None,
    ) -> None:
        self.engine = engine
        self.text, self.gallery = text, gallery
        self.config = config
        self.model_names = tuple(model_names)
        self.adapters = Adapters(engine, config, self.model_names)
        self.observer, self.metrics = observer, observer.metrics
        self.fingerprint = f"sapwood-{__version__}"
        self.about = about
        self.started = int(time.time())
        self.defaults = _numbers(defaults)
        try:
            SamplingParams(**self.defaults).check(vocab_size=self.facts.vocab_size, max_n=MAX_N)
        except RequestError as error:
            raise ConfigError(f"generation_config.json: {error} Correct the value, or remove it.") from error
        self.handing = Handing(lambda: self.facts.door, config.stores) if self.facts.door else None
        self.drain = Drain()
        self.deadlines = Deadlines(config.server.request_seconds, config.server.max_request_seconds)
        self.guard = guard or Guard(config.server)
        self._stable = Stable(names_in(config.server.stable_prefix))
        self.turns = Turns()
        self.flights = Flights()
        self.chores: set[str] = set()  # what goes on between requests and has no end of its own soon: batches
        self._own = Account()
        self._passage: ContextVar[Passage | None] = ContextVar("passage", default=None)
        self._grammars = Checker(
            lambda: spec_of(self.text, self.facts.vocab_size),
            compact_json=config.grammar.compact_json,
            seconds=config.grammar.compile_seconds,
        )
        self._threads = anyio.CapacityLimiter(4)
        self._ends: set[asyncio.Future[None]] = set()
        self._openings: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._closings: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.at_open(self.adapters.open)
        self.at_close(self.adapters.close)
        self.store = Store(config.server.state_dir, most_bytes=config.server.state_bytes)

    @property
    def model_name(self) -> str:
        """The model's own, the first of those it has."""
        return self.model_names[0]

    @property
    def answering(self) -> str:
        """The one that answers have: the model's, or that of the adapter that was asked for."""
        return self.model_name if self.adapter is None else self.adapter.name

    @property
    def adapter(self) -> Known | None:
        """What the request on whose behalf we work has asked for in the place of the model."""
        return None if self.passage is None else self.passage.adapter

    @property
    def facts(self) -> Facts:
        return self.engine.facts

    @contextmanager
    def serving(self, passage: Passage) -> Iterator[None]:
        """Around a request: what is done within, in tasks begun there too, is on its account."""
        before = self._passage.set(passage)
        try:
            yield
        finally:
            self._passage.reset(before)

    @property
    def passage(self) -> Passage | None:
        """The request on whose behalf we work, if it is one from outside."""
        return self._passage.get()

    @property
    def account(self) -> Account:
        """On whose account we work; the server's own has no limits."""
        passage = self.passage
        return self._own if passage is None else passage.account

    def check_model(self, name: str | None) -> None:
        """Raise RequestError (404) unless `name` is one of the served model's, or an adapter's, or missing. The request has that adapter
        from now on."""
        passage = self.passage
        found = None if not name or name in self.model_names else self.adapters.find(name)
        if passage is not None:
            passage.adapter = found
        if name and name not in self.model_names and found is None:
            known = ", ".join(map(repr, (*self.model_names, *(one.name for one in self.adapters.registry))))
            raise RequestError(
                f"The model {name!r} does not exist; this server has {known}.",
                param="model",
                status=404,
                code="model_not_found",
            )

    def check(self, params: SamplingParams, names: Mapping[str, str]) -> SamplingParams:
        """Checked parameters of a generation. `names` maps SamplingParams' names to the caller's, for the messages."""
        check_task(Generate, self.facts)
        try:
            return params.check(vocab_size=self.facts.vocab_size, max_n=MAX_N)
        except RequestError as error:
            raise respelled(error, names) from None

    async def forbidden(self, words: Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
        """The runs of tokens that bad words are. Raises RequestError."""
        words = words or ()
        size = sum(map(len, words))
        if len(words) > MAX_FORBIDDEN // 2 or size > _SHORT:
            raise RequestError(
                f"bad_words takes at most {MAX_FORBIDDEN // 2} words, of {_SHORT} characters together.",
                param="bad_words",
            )
        return await self._off_loop(lambda: self.text.runs_of(words), size + _PER_TEXT * len(words), "bad_words")

    async def restrict(self, params: SamplingParams, asked: Asked | None) -> tuple[SamplingParams, EndCheck | None]:
        """The parameters with the grammar that a request asks for, and the check of complete outputs, where that grammar
        leaves something to check. Raises RequestError, naming the field, if it cannot be used."""
        if asked is None:
            return params, None
        params, end_check = msgspec.structs.replace(params, grammar=asked.grammar), await self.end_check(asked)
        await self.check_first(params, asked.param)
        return params, end_check

    async def check_first(self, params: SamplingParams, param: str) -> None:
        """Raise RequestError where no output can begin, since the grammar, which `param` asks for, allows none of the tokens that
        may be drawn. Where one cannot go on, that is known only then."""
        if params.grammar is None or not params.selective:
            return
        vocab_size = self.facts.vocab_size
        may_W = await self._off_loop(lambda: first_words(params, vocab_size), vocab_size, param)
        try:
            await self._grammars.check(params.grammar, may_W.tobytes())
        except GrammarError as error:
            words = [("allowed_token_ids", params.allowed_token_ids is not None), ("bad_words", bool(params.forbidden))]
            names = [name for name, given in words if given]
            raise RequestError(
                f"{' and '.join(names)} cannot be used beside {param}: {error}. Allow more tokens, or leave one of them out.",
                param=names[0],
            ) from None

    async def end_check(self, asked: Asked) -> EndCheck | None:
        """Try a grammar out; the check of complete outputs, None where it leaves nothing to check. Raises RequestError."""
        if not await self.check_grammar(asked):
            return None
        try:
            return EndCheck(asked.grammar)
        except GrammarError as error:
            raise RequestError(f"{asked.param}: {error}.", param=asked.param) from None

    async def check_grammar(self, asked: Asked) -> bool:
        """Try a grammar out: whether outputs have to be checked at the end. Raises RequestError, naming the field."""
        try:
            unchecked = await self._grammars.check(asked.grammar)
        except GrammarError as error:
            raise RequestError(f"{asked.param}: {error}.", param=asked.param) from None
        if unchecked and asked.strict:
            raise RequestError(
                f"{asked.param}: strict, but a grammar cannot follow {', '.join(unchecked)}. Leave these out, or strict: "
                "then outputs are checked when they are complete.",
                param=asked.param,
            )
        return bool(unchecked)

    def checked(self, finding: Finding) -> Finding:
        """What was found of a complete output, counted."""
        self.metrics.schema_checks.labels("valid" if finding.valid else "invalid").inc()
        return finding

    def at_open(self, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have something begun as soon as the server serves."""
        self._openings.append(begin)

    async def open(self) -> None:
        """Begin what runs beside requests."""
        for begin in self._openings:
            await begin()

    def at_close(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have something ended that runs beside requests, before what it uses is closed."""
        self._closings.append(end)

    async def close(self) -> None:
        """End what was started beside the engine."""
        for end in self._closings:
            await end()
        await self._grammars.close()
        self.store.close()
        await anyio.to_thread.run_sync(self.observer.close)

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Raise RequestError unless there are tokens and all are in the vocabulary."""
        if not tokens:
            raise RequestError(f"{param} is empty; at least one token is needed.", param=param)
        check_ids(tokens, vocab_size=self.facts.vocab_size, param=param)

    async def encode(self, text: str, *, param: str, add_special: bool = True) -> list[int]:
        """Tokens of a text."""
        (tokens,) = await self.encode_all([text], param=param, add_special=add_special)
        return tokens

    async def encode_all(self, texts: Sequence[str], *, param: str, add_special: bool = True) -> list[list[int]]:
        """Tokens of each of some texts."""
        for text in texts:
            self._check_length(len(text), param)

        def encoded() -> list[list[int]]:
            return [self.text.encode(text, add_special=add_special) for text in texts]

        return await self._off_loop(encoded, sum(map(len, texts)), param)

    async def read(self, work: Callable[[Reader], T], texts: Sequence[str], *, param: str, most: int | None) -> T:
        """What a reader makes of some texts, which are cut off at `most` tokens."""
        for text in texts if most is None else ():
            self._check_length(len(text), param)
        reader = Reader(self.text, self.facts)
        return await self._off_loop(lambda: work(reader), sum(map(len, texts)), param)

    async def decode(self, tokens: list[int], *, skip_special: bool) -> str:
        (text,) = await self.decode_all([tokens], skip_special=skip_special)
        return text

    async def decode_all(self, several: Sequence[list[int]], *, skip_special: bool) -> list[str]:
        def decoded() -> list[str]:
            return [self.text.decode(tokens, skip_special=skip_special) for tokens in several]

        return await self._off_loop(decoded, sum(map(len, several)), "tokens")

    async def render(self, talk: Talk, *, tools: list[dict[str, Any]] | None = None) -> Rendered:
        """A conversation by the model's template, with what its client changes often behind what it does not."""
        salt = self.account.tenant.salted("")
        shown = await shown_in(talk.messages, self.gallery, salt=salt, most=self.facts.max_model_len)
        talk = replace(talk, messages=self._stable(shown.messages))

        def rendered() -> Rendered:
            # Of the rest a template may leave out what does not fit.
            num_chars = sum(_num_chars(message.get("content")) for message in talk.messages)
            self._check_length(num_chars + (len(msgspec.json.encode(tools)) if tools else 0), talk.param)
            text = self.text.render(
                talk.messages,
                tools=tools,
                add_generation_prompt=talk.answers,
                continue_final=talk.continues,
                template_kwargs=talk.template,
            )
            tokens, spans = shown.placed(self.text.encode(shown.worded(text), add_special=talk.add_special))
            thoughts = self.text.thoughts(text, continues=talk.continues)
            return Rendered(tokens, thoughts, tuple(shown.media), tuple(spans))

        size = _weight([talk.messages, tools, talk.template], enough=_SHORT + 1)
        return await self._off_loop(rendered, size, talk.param)

    async def attended(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled, and its generations with it, as soon as the client hangs up.

        Raises ClientGone then, DeadlinePassed when its time is over, or what `end_all` was given. `receive` must have yielded the whole body already.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(receive))
        end = asyncio.get_running_loop().create_future()
        self._ends.add(end)
        timer = self.deadlines.timer(end)
        try:
            await asyncio.wait((task, gone, end), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if end.done():
                end.result()
            raise ClientGone
        finally:
            if timer is not None:
                timer.cancel()
            self._ends.discard(end)
            end.cancel()
            task.cancel()
            gone.cancel()
            await asyncio.wait((task, gone))
            for done in (task, gone):
                if not done.cancelled():
                    done.exception()  # seen, so that the loop does not report it as lost

    def end_all(self, error: Exception) -> None:
        """End every request in flight with `error`."""
        for end in self._ends:
            if not end.done():
                end.set_exception(error)

    def _check_length(self, num_chars: int, param: str) -> None:
        limit = self.facts.max_model_len
        if self.facts.reading is not None:
            limit = max(limit, self.facts.reading.longest)
        if num_chars > limit * _MAX_CHARS_PER_TOKEN:
            raise RequestError(
                f"the prompt is too long: {param} has {num_chars} characters, which cannot fit the model's context of {limit} tokens.",
                param=param,
                code="context_length_exceeded",
            )

    async def _off_loop(self, work: Callable[[], T], size: int, param: str) -> T:
        try:
            if size <= _SHORT:
                return work()
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
        except RequestError as error:
            # The text side calls what it is given by OpenAI's names.
            raise (with_param(error, param) if error.param in ("prompt", "messages") else error) from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _weight(value: Any, *, enough: int) -> int:
    """About how many characters and values there are in it; once it is `enough`, no more are looked for."""
    found, left = 0, [value]
    while left:
        inner = left.pop()
        found += 1 + (len(inner) if isinstance(inner, str | list | Mapping) else 0)
        if found >= enough:
            break
        if isinstance(inner, list):
            left += inner
        elif isinstance(inner, Mapping):
            left += [*inner.keys(), *inner.values()]
    return found


def _num_chars(content: Any) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content or ())
