"""`sapwood chat`: a conversation in the terminal, with a model beside this process or with a server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, Self

from sapwood.base.errors import SapwoodError
from sapwood.cli.sampling import add_sampling, params_of, sampling_fields
from sapwood.cli.terminal import bring
from sapwood.config import env
from sapwood.config.flags import add_flags, from_args, given
from sapwood.engine import interrupts

HELP = "talk with a model in the terminal"

_COMMANDS = """\
/reset          forget the conversation
/system TEXT    set the system message, and forget the conversation
/stats          tokens, times and what the prefix cache saved in the last answer
/help           this list
/exit           leave; so does Ctrl-D. Ctrl-C ends an answer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", metavar="URL", help="talk to the server there instead of loading a model")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--api-key", dest="key", metavar="KEY", help="the server's key (or set SAPWOOD_API_KEY)")
    add_sampling(parser)
    add_flags(parser, ("model", "cache", "scheduler", "device", "speculation", "grammar"))


def run(args: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its line editing

    fields = sampling_fields(args)
    with interrupts.by_sigterm(), _backend(args, fields) as backend:
        Conversation(backend, system=args.system).loop()
    return 0


@dataclass
class Answer:
    """One answer's numbers, filled in while it streams. Seconds since the question."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        decoding = max(self.seconds - self.first_seconds, 1e-9)
        rate = f"{(self.output_tokens - 1) / decoding:.1f} tokens/s" if self.output_tokens > 1 else "-"
        return (
            f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} of them cached; first token after "
            f"{self.first_seconds:.2f} s; answer {self.output_tokens} tokens, {rate}"
        )


class Backend(Protocol):
    """Who answers: yields pieces of text and fills in the numbers."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None: ...
    def answer(self, messages: list[dict[str, str]], numbers: Answer) -> Iterator[str]: ...


@dataclass
class Conversation:
    """The messages so far, and the loop that adds to them."""

    backend: Backend
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    last: Answer | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns

    def loop(self) -> None:
        print("Type a message, or /help.")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            if line in ("/exit", "/quit"):
                return
            if line.startswith("/"):
                print(self.command(line))
            elif line:
                self.turn(line)

    def command(self, line: str) -> str:
        """Carry out a /command and return what to print."""
        name, _, rest = line.partition(" ")
        match name:
            case "/reset":
                self.turns.clear()
                return "The conversation is forgotten."
            case "/system":
                self.system = rest.strip() or None
                self.turns.clear()
                return "The system message is set." if self.system else "There is no system message now."
            case "/stats":
                return str(self.last) if self.last else "There was no answer yet."
            case "/help":
                return _COMMANDS
        return f"There is no command {name}.\n{_COMMANDS}"

    def turn(self, line: str) -> None:
        """Ask, print the answer as it streams, and remember both; a question that failed is not remembered."""
        self.turns.append({"role": "user", "content": line})
        numbers, pieces, began = Answer(), [], perf_counter()
        try:
            for piece in self.backend.answer(self.messages, numbers):
                numbers.first_seconds = numbers.first_seconds or perf_counter() - began
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pieces.append("" if pieces else "...")
            print(" [ended]", end="")
        except SapwoodError as error:
            self.turns.pop()
            print(f"error: {error}")
            return
        print()
        numbers.seconds = perf_counter() - began
        self.last = numbers
        self.turns.append({"role": "assistant", "content": "".join(pieces)})


def _backend(args: argparse.Namespace, fields: dict[str, Any]) -> Backend:
    if args.url:
        return _Server(args.url, args.key or env.api_key(), fields, given(args).get("model"))
    bring(from_args(args))
    return _Local(given(args), fields)


class _Server:
    """A server's chat endpoint."""

    def __init__(self, url: str, api_key: str | None, fields: dict[str, Any], model: str | None) -> None:
        from sapwood.cli.remote import Remote

        self._remote = Remote(url, api_key=api_key)
        self._fields = fields
        self._model = model

    def __enter__(self) -> Self:
        self._model = self._model or self._remote.model()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        pass

    def answer(self, messages: list[dict[str, str]], numbers: Answer) -> Iterator[str]:
        for chunk in self._remote.chat(messages, model=self._model, **self._fields):
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    yield text
            if usage := chunk.get("usage"):
                numbers.prompt_tokens, numbers.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                numbers.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


class _Local:
    """The engine beside this process. Each turn drives its event loop until the answer has ended."""

    def __init__(self, options: dict[str, Any], fields: dict[str, Any]) -> None:
        from sapwood.llm import AsyncLLM

        self._runner = asyncio.Runner()
        self._params = params_of(fields)
        self._llm = AsyncLLM(**options)

    def __enter__(self) -> Self:
        self._runner.run(self._llm.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        with self._runner:
            self._runner.run(self._llm.__aexit__(kind, error, trace))

    def answer(self, messages: list[dict[str, str]], numbers: Answer) -> Iterator[str]:
        chunks: AsyncIterator[Any] = self._llm.stream(messages, self._params)
        while (chunk := self._runner.run(_next(chunks))) is not None:
            numbers.output_tokens += len(chunk.token_ids)
            if chunk.finish_reason:
                numbers.prompt_tokens, numbers.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
            if chunk.text:
                yield chunk.text


async def _next(chunks: AsyncIterator[Any]) -> Any:
    return await anext(chunks, None)
