"""The Python API: a model in this process, or beside it with asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sapwood.base.errors import GenerationFailed, GrammarError, RequestError
from sapwood.base.grammar import Grammar
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Delta, Facts, Submit
from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.engine.client import AsyncEngine, check_request, copies
from sapwood.grammar import Checker
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import Finding
from sapwood.grammar.vocabulary import spec_of
from sapwood.hub.files import ModelFiles, find
from sapwood.text import TextModel, TextStream
from sapwood.text.parsers import Said

Prompt = str | list[int]
Message = dict[str, Any]


@dataclass(eq=False)
class Output:
    """One generated text. `finish_reason` is 'stop' or 'length'; `stop` the stop string or token that ended it.

    `said` is what a chat's text says, taken apart: text, thoughts and calls of tools. `schema_check` is what was found of
    the complete text where its grammar leaves keywords of a schema out, None where nothing was left out.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop: str | int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    said: Said | None = None
    schema_check: Finding | None = None


@dataclass(eq=False)
class Generation:
    """What came of one prompt: `params.n` outputs. `text`, `token_ids` and `finish_reason` are the first one's."""

    prompt_token_ids: list[int]
    outputs: list[Output]
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of a streamed output. `cached_tokens` counts from the first chunk on; the last may have a `schema_check`."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[TokenLogprobs] | None = None
    schema_check: Finding | None = None


class LLM:
    """A model in this process, for batches.

        llm = LLM("smollm2-135m")
        for generation in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
            print(generation.text)

    Keyword options are those of `sapwood serve`, with underscores. Raises ConfigError or ModelError.
    """

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        from sapwood.engine.launch import launch

        self.config = from_options({"model": model, **options})
        files = _find(self.config)
        self.text = _load_text(self.config, files)
        self._engine, facts, self._compiler = launch(self.config, files, self.text)
        self.facts = _with_eos(facts, self.text)
        self._numbers = 0

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Generation]:
        """Generate for each prompt, a text or a list of token ids; results in the order of the prompts.

        `params` is one for all or one each. Raises RequestError before anything runs if one cannot be served.
        """
        many = _prompts(prompts)
        tokens = [self.text.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in many]
        return self._run(tokens, params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> list[Generation]:
        """Answer one conversation or several, through the model's chat template, which gets `tools` as well, and
        `template_kwargs`; or go on with the last message of each."""
        if not messages:
            raise RequestError("messages is empty.", param="messages")
        several: Any = [messages] if isinstance(messages[0], dict) else messages
        texts = [
            self.text.render(
                list(one),
                tools=tools,
                add_generation_prompt=not continue_final_message,
                continue_final=continue_final_message,
                template_kwargs=template_kwargs,
            )
            for one in several
        ]
        tokens = [self.text.special_text(text) for text in texts]
        found = self._run(tokens, params, shown=self.text.markers(calls=bool(tools)))
        for generation, text in zip(found, texts, strict=True):
            for output in generation.outputs:
                output.said = self.text.read(output.text, tools, open=self.text.thoughts(text) == "open")
        return found

    def _run(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        shown: frozenset[int] = frozenset(),
    ) -> list[Generation]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts but {len(params)} params.", param="params")
        for tokens, one in zip(prompts, params, strict=True):
            check_request(tokens, one, self.facts)
        grammars = dict.fromkeys(one.grammar for one in params if one.grammar is not None)
        end_checks = {grammar: self._check(grammar) for grammar in grammars}
        generations = [Generation(tokens, []) for tokens in prompts]
        live: dict[int, _Sink] = {}
        try:
            for generation, one in zip(generations, params, strict=True):
                for single in copies(one):
                    self._submit(generation, single, live, shown)
            while live:
                self._step(live)
        finally:
            self._engine.abort(Abort(list(live)))
            while not self._engine.idle:  # steps in flight, after an interrupt
                self._engine.step()
        for generation, one in zip(generations, params, strict=True):
            if one.grammar is not None and (check := end_checks[one.grammar]) is not None:
                for output in generation.outputs:
                    output.schema_check = check(output.text)
        return generations

    def _check(self, grammar: Grammar) -> EndCheck | None:
        """The check of its outputs, where one is needed. Raises RequestError for a grammar that cannot be used."""
        seconds = self.config.grammar.compile_seconds
        try:
            compiled = self._compiler.check(grammar, seconds=seconds)
            return EndCheck(grammar) if compiled.unchecked else None
        except GrammarError as error:
            raise RequestError(f"grammar: {error}.", param="grammar") from None

    def _submit(
        self, generation: Generation, params: SamplingParams, live: dict[int, _Sink], shown: frozenset[int]
    ) -> None:
        self._numbers += 1
        output = Output()
        generation.outputs.append(output)
        live[self._numbers] = _Sink(generation, output, self.text.stream(params, shown=shown))
        stop_ids = list(params.stop_token_ids) + ([] if params.ignore_eos else self.facts.eos_ids)
        refused = self._engine.submit(Submit(self._numbers, generation.prompt_token_ids, params, stop_ids))
        if refused is not None:
            raise GenerationFailed(refused.error)

    def _step(self, live: dict[int, _Sink]) -> None:
        for news in self._engine.step():
            plain = (Delta(id, [token]) for id, token in zip(news.ids, news.tokens, strict=True))
            for delta in [*plain, *news.deltas]:
                sink = live.get(delta.id)
                if sink is None:
                    continue  # stopped by a string; its last token was on its way
                if sink.take(delta):
                    del live[delta.id]
                    if delta.finish is None:
                        self._engine.abort(Abort([delta.id]))


@dataclass(eq=False)
class _Sink:
    """Where one request's news go."""

    generation: Generation
    output: Output
    stream: TextStream

    def take(self, delta: Delta) -> bool:
        """Add the news to the output; True when it is complete."""
        if delta.finish == "error":
            raise GenerationFailed(delta.error)
        output = self.output
        if delta.cached_tokens >= 0 and output is self.generation.outputs[0]:
            self.generation.cached_tokens = delta.cached_tokens  # the others find what the first has computed
        self.generation.prompt_logprobs = delta.prompt_logprobs or self.generation.prompt_logprobs
        output.token_ids += delta.tokens
        output.logprobs += delta.logprobs or []
        piece = self.stream.push(delta.tokens if delta.stop is None else delta.tokens[:-1])
        output.text += piece.text
        if piece.stop is not None:
            output.finish_reason, output.stop = "stop", piece.stop
        elif delta.finish is not None:
            output.text += self.stream.finish()
            output.finish_reason, output.stop = delta.finish, delta.stop
        return output.finish_reason is not None


class AsyncLLM:
    """A model beside this process, for many callers at once.

    async with AsyncLLM("smollm2-135m") as llm:
        async for chunk in llm.stream("The capital of France is"):
            print(chunk.text, end="")
    """

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        self.config = from_options({"model": model, **options})
        self._stack = AsyncExitStack()
        self.engine: AsyncEngine
        self.text: TextModel
        self._grammars: Checker

    async def __aenter__(self) -> Self:
        from sapwood.engine.process import start

        files = _find(self.config)
        self.text = _load_text(self.config, files)  # first: what fails here must leave no process behind
        self.engine = await self._stack.enter_async_context(start(self.config))
        self.engine.end_at(self.text.eos_ids)
        self._grammars = Checker(
            lambda: spec_of(self.text, self.engine.facts.vocab_size),
            compact_json=self.config.grammar.compact_json,
            seconds=self.config.grammar.compile_seconds,
        )
        self._stack.push_async_callback(self._grammars.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def stream(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None
    ) -> AsyncGenerator[Chunk]:
        """Yield one output as it grows. `prompt` is a text, token ids, or the messages of a conversation.

        Raises RequestError for what cannot be served; closing the generator stops the generation.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise RequestError("stream follows one output; ask for n in separate calls.", param="n")
        tokens = self._tokens(prompt)
        end_check = await self._end_check(params.grammar)
        stream = self.text.stream(params)
        cached, whole = 0, []
        async with aclosing(self.engine.generate(tokens, params)) as deltas:
            async for delta in deltas:
                cached = max(cached, delta.cached_tokens)
                piece = stream.push(delta.tokens if delta.stop is None else delta.tokens[:-1])
                finish = "stop" if piece.stop is not None else delta.finish
                text = piece.text + (stream.finish() if delta.finish and piece.stop is None else "")
                whole.append(text)
                finding = end_check("".join(whole)) if finish and end_check is not None else None
                yield Chunk(text, delta.tokens, finish, len(tokens), cached, delta.logprobs, finding)
                if finish:
                    return

    async def _end_check(self, grammar: Grammar | None) -> EndCheck | None:
        """The check of its outputs, where one is needed. Raises RequestError for a grammar that cannot be used."""
        if grammar is None:
            return None
        try:
            return EndCheck(grammar) if await self._grammars.check(grammar) else None
        except GrammarError as error:
            raise RequestError(f"grammar: {error}.", param="grammar") from None

    async def generate(self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None) -> Generation:
        """One whole output."""
        output = Output()
        generation = Generation(self._tokens(prompt), [output])
        async for chunk in self.stream(generation.prompt_token_ids, params):
            output.text += chunk.text
            output.token_ids += chunk.token_ids
            output.logprobs += chunk.logprobs or []
            output.finish_reason = chunk.finish_reason
            output.schema_check = chunk.schema_check
            generation.cached_tokens = chunk.cached_tokens
        return generation

    def _tokens(self, prompt: Prompt | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        if prompt and isinstance(prompt[0], dict):
            return self.text.chat_tokens(list(prompt))  # type: ignore[arg-type]
        return list(prompt)  # type: ignore[arg-type]


def _prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [prompts] if one else prompts  # type: ignore[list-item,return-value]


def _find(config: Config) -> ModelFiles:
    weights = config.model.load_format != "dummy"
    return find(config.model.model, revision=config.model.revision, weights=weights)


def _load_text(config: Config, files: ModelFiles) -> TextModel:
    return TextModel.configured(files, config.model)


def _with_eos(facts: Facts, text: TextModel) -> Facts:
    import msgspec

    return msgspec.structs.replace(facts, eos_ids=list(text.eos_ids))
