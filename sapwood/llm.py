"""The Python API: a model in this process, or beside it with asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from sapwood.asked import Asked, Plain, Prompt, of_chat, of_prompt
from sapwood.base.errors import GrammarError, RequestError, SapwoodError
from sapwood.base.grammar import Grammar
from sapwood.base.insight import INSIGHTS, join
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import Pooling
from sapwood.catalogue import joined
from sapwood.config.flags import from_options
from sapwood.engine.beams import BeamParams, Early
from sapwood.engine.client import AsyncEngine, Stream, check_request, copies
from sapwood.grammar import Checker
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import Finding
from sapwood.grammar.vocabulary import spec_of
from sapwood.hearing import Recording, Recordings
from sapwood.hub.files import find_configured
from sapwood.loras import Lora, Loras
from sapwood.outputs import Chunk, Generation, Output
from sapwood.reading import Classification, Embedding, Texts
from sapwood.resident import AsyncResident, Resident
from sapwood.searching import searched
from sapwood.showing import Message, Showing
from sapwood.speech.transcript import Options, Transcript
from sapwood.speech.transcription import Tell
from sapwood.text import Assembler, Piece, TextModel

if TYPE_CHECKING:
    from sapwood.engine.replicas import Replicas
log = logging.getLogger(__name__)

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(Resident):
    """A model in this process, for batches.

        llm = LLM("smollm2-135m")
        for generation in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
            print(generation.text)

    Keyword options are those of `sapwood serve`, with underscores. Raises ConfigError or ModelError.
    """

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        from sapwood.engine.inprocess import InProcess
        from sapwood.engine.launch import launch

        self.config, catalogue = from_options({"model": model, **options}), joined()
        files = find_configured(self.config.model, families=catalogue.families)
        self.text = TextModel.configured(files, self.config.model, catalogue.formats)
        self._engine, facts, self._compiler = launch(self.config, files, self.text, catalogue=catalogue)
        self.engine = InProcess(self._engine, facts)
        self.engine.end_at(self.text.eos_ids)
        self.facts = self.engine.facts
        self.adapters = Loras(self.config, self.facts)
        self._showing = Showing(self.config, files, self.text, self.facts, catalogue)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, lora: Lora = None, **returns: bool
    ) -> list[Generation]:
        """Generate for each prompt, a text or a list of token ids; results in the order of the prompts. One with images or recordings is
        {"prompt" or "prompt_token_ids": ..., "multi_modal_data": {"image" or "audio": one or a list}}, with the model's token in each place.

        `params` is one for all or one each; so is `lora`, an adapter's name or directory, or None. Raises RequestError before anything runs if one cannot be served. A request
        that fails while it runs costs no other one: its output says so in its place (`Output.error`, and a warning is
        logged); `Generation.raise_for_error` makes an exception of it. `return_hidden_states`, `return_logits` and `return_routed_experts` may be given here,
        for all, as well as in the parameters.
        """
        many = _prompts(prompts)
        asked = []
        for index, prompt in enumerate(many):
            with _numbered(index, len(many)):
                asked.append(of_prompt(self.text, prompt, self._showing))
        return self._run(asked, _returning(params, returns), lora)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: Params = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        lora: Lora = None,
        **template_kwargs: Any,
    ) -> list[Generation]:
        """Answer one conversation or several, through the model's chat template, which gets `tools` as well, and
        `template_kwargs`; or go on with the last message of each. Parts of messages may be images and recordings: {"type": "image_url" or
        "audio_url", ...} as in the API, or {"type": "image" or "audio", "image" or "audio": a URL, a path, bytes or an image of Pillow's}.

        Raises, and tells of failures, as `generate` does.
        """
        if not messages:
            raise RequestError("messages is empty.", param="messages")
        several: Any = [messages] if isinstance(messages[0], dict) else messages
        asked = []
        for index, conversation in enumerate(several):
            with _numbered(index, len(several)):
                asked.append(
                    of_chat(
                        self.text,
                        conversation,
                        tools,
                        continues=continue_final_message,
                        extra=template_kwargs,
                        showing=self._showing,
                    )
                )
        return self._run(asked, params, lora)

    def beam_search(
        self,
        prompts: Plain | Sequence[Plain],
        *,
        beam_width: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        early_stopping: Early = False,
        ignore_eos: bool = False,
    ) -> list[Generation]:
        """The likeliest outputs of each prompt as wholes, the best first, by beams as `BeamParams` describes them: each output has its
        `score`. Raises RequestError before anything runs if one cannot be served."""
        params = BeamParams(
            width=beam_width, max_tokens=max_tokens, length_penalty=length_penalty, early_stopping=early_stopping
        ).check()
        tokens = [of_prompt(self.text, prompt).tokens for prompt in _prompts(prompts)]
        found = searched(self.engine, tokens, params, () if ignore_eos else self.facts.eos_ids)
        return [
            Generation(one, [Output.of_beam(beam, self.text.decode(beam.tokens)) for beam in beams])
            for one, beams in zip(tokens, found, strict=True)
        ]

    def embed(
        self,
        texts: Plain | Sequence[Plain],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalise: bool | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> list[Embedding]:
        """A vector of each text, pooled and normalised as the model's files say unless asked otherwise; its first `dimensions`.

        Raises RequestError before anything runs if one cannot be served, as one that is too long and not to be cut off is.
        """
        reading = Texts(self.engine, self.text)
        return reading.embed(_prompts(texts), pooling, dimensions, normalise, prompt_name, truncate=truncate)

    def score(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> list[float]:
        """How well each document answers the query: by the model's classifier of pairs, or by the cosine of their vectors."""
        return Texts(self.engine, self.text).score(query, documents, truncate=truncate)

    def classify(self, texts: str | Sequence[str], *, truncate: bool = False) -> list[Classification]:
        """The labels of each text, by a model that has a classifier."""
        return Texts(self.engine, self.text).classify([texts] if isinstance(texts, str) else texts, truncate=truncate)

    def transcribe(
        self,
        recordings: Recording | Sequence[Recording],
        options: Options | None = None,
        *,
        tell: Tell | None = None,
    ) -> list[Transcript]:
        """What is said in each recording: a file, the bytes of one, or samples at 16 kHz. By a model of the Whisper family.

        `tell` gets segments as soon as they are known. Raises RequestError for what is no recording.
        """
        many = (
            recordings if isinstance(recordings, Sequence) and not isinstance(recordings, str | bytes) else [recordings]
        )
        return Recordings(self.engine, self.text).transcribe(many, options or Options(), tell)

    def _run(self, asked: Sequence[Asked], params: Params, lora: Lora) -> list[Generation]:
        adapters = self.adapters.each(lora, len(asked))
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(asked)
        if len(params) != len(asked):
            raise RequestError(f"{len(asked)} prompts but {len(params)} params.", param="params")
        for index, (ask, one) in enumerate(zip(asked, params, strict=True)):
            with _numbered(index, len(asked)):
                check_request(ask.tokens, one, self.facts)
        grammars = dict.fromkeys(one.grammar for one in params if one.grammar is not None)
        end_checks = {grammar: self._check(grammar) for grammar in grammars}
        generations = [Generation(ask.tokens, []) for ask in asked]
        live: set[_Run] = set()
        try:
            for generation, ask, one, adapter in zip(generations, asked, params, adapters, strict=True):
                for single in copies(one):
                    run = _Run(generation, ask, self.text.assembler(single, shown=ask.shown), live)
                    run.stream = self.engine.submit(
                        ask.tokens, single, run, adapter=adapter, media=ask.media, spans=ask.spans
                    )
                    live.add(run)
            while live:
                self.engine.step()
        finally:  # after an interrupt some are left
            for run in tuple(live):
                run.leave()
            self.engine.drain()
        for generation, one in zip(generations, params, strict=True):
            if one.grammar is not None and (check := end_checks[one.grammar]) is not None:
                for output in generation.outputs:
                    output.schema_check = check(output.text) if output.error is None else None
        _warn(generations)
        return generations

    def _check(self, grammar: Grammar) -> EndCheck | None:
        """The check of its outputs, where one is needed. Raises RequestError for a grammar that cannot be used."""
        try:
            compiled = self._compiler.check(grammar, seconds=self.config.grammar.compile_seconds)
            return EndCheck(grammar) if compiled.unchecked else None
        except GrammarError as error:
            raise RequestError(f"grammar: {error}.", param="grammar") from None


class _Run:
    """One output while the engine works at it; what is new is taken only where it may be the end."""

    stream: Stream

    def __init__(self, generation: Generation, ask: Asked, assembler: Assembler, live: set[_Run]) -> None:
        self._generation = generation
        self._ask = ask
        self._assembler = assembler
        self._live = live
        self._output = Output()
        generation.outputs.append(self._output)

    def wake(self) -> None:
        if not (self.stream.finished or self._assembler.hurried):
            return
        try:
            delta = self.stream.take()
            if delta is not None:
                _add(self._generation, self._output, self._assembler, self._assembler.take(delta))
        except SapwoodError as error:
            self._fail(str(error))
            return
        if self._assembler.finish is not None:
            if self._ask.read is not None:
                self._output.said = self._ask.read(self._output.text)
            self.leave()

    def _fail(self, error: str) -> None:
        """What was generated before is dropped: how much of it had been taken is chance."""
        output = self._output
        output.text, output.token_ids, output.logprobs = "", [], []
        output.finish_reason, output.error = "error", error
        self.leave()

    def leave(self) -> None:
        self._live.discard(self)
        self.stream.close()


class AsyncLLM(AsyncResident):
    """A model beside this process, for many callers at once.

    async with AsyncLLM("smollm2-135m") as llm:
        async for chunk in llm.stream("The capital of France is"):
            print(chunk.text, end="")
    """

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        self.config = from_options({"model": model, **options})
        self._stack = AsyncExitStack()
        self.engine: AsyncEngine | Replicas
        self.text: TextModel
        self.adapters: Loras
        self._showing: Showing
        self._grammars: Checker

    async def __aenter__(self) -> Self:
        from sapwood.engine.replicas import start

        catalogue = joined()
        files = find_configured(self.config.model, families=catalogue.families)
        self.text = TextModel.configured(files, self.config.model, catalogue.formats)
        async with AsyncExitStack() as stack:  # what fails here leaves no process behind
            self.engine = await stack.enter_async_context(start(self.config))
            self.engine.end_at(self.text.eos_ids)
            self.adapters = Loras(self.config, self.engine.facts)
            self._showing = Showing(self.config, files, self.text, self.engine.facts, catalogue)
            self._grammars = Checker(
                lambda: spec_of(self.text, self.engine.facts.vocab_size),
                compact_json=self.config.grammar.compact_json,
                seconds=self.config.grammar.compile_seconds,
            )
            stack.push_async_callback(self._grammars.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def stream(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, *, lora: str | None = None
    ) -> AsyncGenerator[Chunk]:
        """Yield one output as it grows. `prompt` is a text, token ids, or the messages of a conversation, `lora` an adapter's name or directory.

        Raises RequestError for what cannot be served; closing the generator stops the generation.
        """
        ask, params = await self._asked(prompt), params or SamplingParams()
        async with aclosing(self._follow(ask, params, lora)) as pieces:
            async for assembler, (text, tokens, logprobs), finding in pieces:
                yield Chunk(
                    text,
                    tokens,
                    assembler.finish,
                    len(ask.tokens),
                    assembler.num_cached_tokens,
                    logprobs if params.logprobs is not None else None,
                    assembler.stop,
                    finding,
                )

    async def generate(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, *, lora: str | None = None
    ) -> Generation:
        """One whole output. Raises RequestError for what cannot be served, GenerationFailed for what failed."""
        ask, output = await self._asked(prompt), Output()
        generation = Generation(ask.tokens, [output])
        async with aclosing(self._follow(ask, params or SamplingParams(), lora)) as pieces:
            async for assembler, piece, finding in pieces:
                _add(generation, output, assembler, piece)
                output.schema_check = finding
        if ask.read is not None:
            output.said = ask.read(output.text)
        return generation

    async def _follow(
        self, ask: Asked, params: SamplingParams, lora: str | None
    ) -> AsyncGenerator[tuple[Assembler, Piece, Finding | None]]:
        """What is new in an output, the output's state, and in the end what was found of its schema."""
        if params.n != 1:
            raise RequestError("this follows one output; ask for n in separate calls.", param="n")
        end_check = await self._end_check(params.grammar)
        (adapter,) = await asyncio.to_thread(self.adapters.each, lora, 1)
        assembler = self.text.assembler(params, shown=ask.shown)
        whole: list[str] = []
        async with aclosing(
            self.engine.generate(ask.tokens, params, adapter=adapter, media=ask.media, spans=ask.spans)
        ) as deltas:
            async for delta in deltas:
                piece = assembler.take(delta)
                whole.append(piece.text)
                if assembler.finish is None:
                    yield assembler, piece, None
                    continue
                yield assembler, piece, None if end_check is None else end_check("".join(whole))
                return

    async def _end_check(self, grammar: Grammar | None) -> EndCheck | None:
        """The check of its outputs, where one is needed. Raises RequestError for a grammar that cannot be used."""
        if grammar is None:
            return None
        try:
            return EndCheck(grammar) if await self._grammars.check(grammar) else None
        except GrammarError as error:
            raise RequestError(f"grammar: {error}.", param="grammar") from None

    async def _asked(self, prompt: Prompt | Sequence[Message]) -> Asked:
        """What has media is prepared in a thread."""
        if isinstance(prompt, Mapping):
            return await asyncio.to_thread(of_prompt, self.text, prompt, self._showing)
        if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], dict):
            return of_prompt(self.text, prompt)  # type: ignore[arg-type]
        messages: Any = prompt
        return await asyncio.to_thread(of_chat, self.text, messages, showing=self._showing)


def _returning(params: Params, returns: Mapping[str, bool]) -> Params:
    """The parameters, with what is to be returned beside the text."""
    if not returns:
        return params
    if unknown := returns.keys() - {f"return_{name}" for name in INSIGHTS}:
        raise TypeError(f"generate() takes no {', '.join(sorted(unknown))}")
    if params is None or isinstance(params, SamplingParams):
        return msgspec.structs.replace(params or SamplingParams(), **returns)
    return [msgspec.structs.replace(one, **returns) for one in params]


def _add(generation: Generation, output: Output, assembler: Assembler, piece: Piece) -> None:
    output.text += piece.text
    output.token_ids += piece.tokens
    output.logprobs += piece.logprobs
    output.finish_reason, output.stop = assembler.finish, assembler.stop
    if assembler.finish is not None and assembler.insights:
        for name, told in join(assembler.insights).items():
            setattr(output, name, told.array)
    generation.prompt_logprobs = assembler.prompt_logprobs
    if output is generation.outputs[0]:  # the others find what the first has computed
        generation.cached_tokens = assembler.num_cached_tokens
        generation.left_out_tokens = assembler.num_left_out


def _warn(generations: Sequence[Generation]) -> None:
    failed = [error for generation in generations if (error := generation.error) is not None]
    if failed:
        log.warning("%d of %d requests failed, the first of them: %s", len(failed), len(generations), failed[0])


@contextmanager
def _numbered(index: int, count: int) -> Iterator[None]:
    """What is refused says which of several requests it is, counted from 0."""
    try:
        yield
    except RequestError as error:
        if count == 1:
            raise
        message = f"request {index}: {error}"
        raise RequestError(message, param=error.param, status=error.status, code=error.code) from None


def _prompts(prompts: Any) -> Sequence[Any]:
    one = isinstance(prompts, str | Mapping) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [prompts] if one else prompts
