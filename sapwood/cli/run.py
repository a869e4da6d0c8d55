"""`sapwood run`: answer one prompt, or a file of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from sapwood.base.errors import RequestError, SapwoodError, UserError
from sapwood.cli.sampling import add_sampling, params_of, sampling_fields
from sapwood.cli.terminal import bring
from sapwood.config.flags import add_flags, from_args, given
from sapwood.engine import interrupts

if TYPE_CHECKING:
    from sapwood.llm import AsyncLLM

HELP = "answer one prompt, or a JSONL file of them"

_IN_FLIGHT = 512  # lines handed to the engine at once; it orders and batches them itself


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; without it and --input it is read from stdin")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it stands, without chat template")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        help="JSONL: objects with prompt or messages, custom_id, sampling fields; or lines of OpenAI's batches",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="JSONL, a line per input line (default: stdout)")
    parser.add_argument("--resume", action="store_true", help="keep --output's answers and add those that are missing")
    add_sampling(parser)
    add_flags(parser, ("model", "cache", "scheduler", "device", "speculation", "grammar"), positional=False)


def run(args: argparse.Namespace) -> int:
    if args.input and args.prompt:
        raise UserError("a prompt and --input exclude each other.")
    if args.resume and not (args.input and args.output):
        raise UserError("--resume needs --input and --output.")
    with interrupts.by_sigterm():
        bring(from_args(args))
        return asyncio.run(_run_file(args) if args.input else _run_one(args))


async def _run_one(args: argparse.Namespace) -> int:
    from sapwood.llm import AsyncLLM

    text = _read_stdin() if args.prompt is None else args.prompt
    params = params_of(sampling_fields(args))
    async with AsyncLLM(**given(args)) as llm:
        chat = not args.raw and llm.text.has_template
        prompt = _messages(args.system, text) if chat else text
        async for chunk in llm.stream(prompt, params):
            print(chunk.text, end="", flush=True)
    print()
    return 0


def _read_stdin() -> str:
    """UTF-8, whatever the locale says; any end of a line is a line feed, as in other text."""
    if sys.stdin.isatty():
        raise UserError("no prompt: give one as an argument, on stdin, or a file with --input.")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on stdin is not UTF-8: {error}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- a file of prompts ---


@dataclass(frozen=True)
class Line:
    """One line of the input: its number from 0, and what it says or what is wrong with it."""

    index: int
    body: dict[str, Any]
    error: str | None = None

    @property
    def custom_id(self) -> Any:
        return self.body.get("custom_id")


Answer = Callable[[Line], Coroutine[Any, Any, dict[str, Any]]]


async def _run_file(args: argparse.Namespace) -> int:
    from sapwood.llm import AsyncLLM

    lines = list(read_lines(args.input))
    done = answered(args.output) if args.resume else set()
    todo = [line for line in lines if line.index not in done]
    num_failed = 0
    with _output(args.output, append=args.resume) as out, _progress(len(lines), len(done)) as advance:
        async with AsyncLLM(**given(args)) as llm, _answering(llm, args, todo) as answer:
            async for result in _answers(todo, answer):
                num_failed += failed(result)
                out.write(json.dumps(result, ensure_ascii=False) + "\n")
                out.flush()
                advance()
    if num_failed:
        print(f"sapwood: {num_failed} of {len(todo)} lines failed; their error says why.", file=sys.stderr)
    return 1 if num_failed else 0


@asynccontextmanager
async def _answering(llm: AsyncLLM, args: argparse.Namespace, lines: Iterable[Line]) -> AsyncIterator[Answer]:
    """Yields what answers a line, be it one of ours or of a batch."""
    fields, system = sampling_fields(args), args.system
    if not any("url" in line.body for line in lines):
        yield lambda line: _answer(llm, line, fields, system)
        return
    from sapwood.catalogue import joined
    from sapwood.cli.batch import batch_lines
    from sapwood.hub.files import find_configured

    files = find_configured(llm.config.model, families=joined().families)
    async with batch_lines(llm.engine, llm.text, llm.config, files) as answer_batch:
        yield lambda line: answer_batch(line.body) if "url" in line.body else _answer(llm, line, fields, system)


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not blank; what is wrong with one is its own error."""
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror or error}.") from error
    for index, text in enumerate(text for text in texts if text.strip()):
        try:
            body = json.loads(text)
        except ValueError as error:
            yield Line(index, {}, f"not valid JSON: {error}")
            continue
        if isinstance(body, dict):
            yield Line(index, body)
        else:
            yield Line(index, {}, f"expected a JSON object, got {type(body).__name__}")


def answered(path: Path) -> set[int]:
    """The indices that an earlier run's output answers; a line that was cut off is not one of them."""
    found: set[int] = set()
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            result = json.loads(text)
        except ValueError:
            continue
        if isinstance(result, dict) and "index" in result and not failed(result):
            found.add(result["index"])
    return found


def failed(result: dict[str, Any]) -> bool:
    """Whether a line has no answer, be it one of ours or of a batch."""
    response = result.get("response")
    return result.get("error") is not None or (response is not None and response["status_code"] >= 400)


async def _answers(lines: Iterable[Line], answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Results as they come, in the order in which they end."""
    gate = asyncio.Semaphore(_IN_FLIGHT)
    results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def one(line: Line) -> None:
        async with gate:
            results.put_nowait({"index": line.index} | await answer(line))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(line)) for line in lines]
        for _ in tasks:
            yield await results.get()


async def _answer(llm: Any, line: Line, fields: dict[str, Any], system: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {} if line.custom_id is None else {"custom_id": line.custom_id}
    try:
        if line.error:
            raise RequestError(line.error)
        prompt, params = read_request(line.body, fields, system)
        text, usage = [], {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}
        async for chunk in llm.stream(prompt, params):
            text.append(chunk.text)
            usage["completion_tokens"] += len(chunk.token_ids)
            if chunk.finish_reason:
                result["finish_reason"] = chunk.finish_reason
                if chunk.schema_check is not None:
                    result["schema_check"] = msgspec.to_builtins(chunk.schema_check)
                usage["prompt_tokens"], usage["cached_tokens"] = chunk.prompt_tokens, chunk.cached_tokens
        return result | {"text": "".join(text), "usage": usage}
    except SapwoodError as error:  # refused, or failed inside; neither is the other lines' trouble
        return result | {"error": str(error)}


def read_request(body: dict[str, Any], fields: dict[str, Any], system: str | None) -> tuple[Any, Any]:
    """The prompt (text, token ids, or messages) and the SamplingParams of one line."""
    own = {name: value for name, value in body.items() if name not in ("prompt", "messages", "custom_id", "model")}
    params = params_of(own, **fields)
    match body:
        case {"prompt": _, "messages": _}:
            raise RequestError("prompt and messages exclude each other.", param="messages")
        case {"prompt": str() as prompt}:
            return prompt, params
        case {"prompt": list() as tokens} if tokens and all(type(token) is int for token in tokens):
            return tokens, params
        case {"prompt": _}:
            raise RequestError("prompt must be text or a list of token ids.", param="prompt")
        case {"messages": list() as messages} if all(isinstance(message, dict) for message in messages):
            spoken = system and not any(message.get("role") == "system" for message in messages)
            return ([{"role": "system", "content": system}] if spoken else []) + messages, params
        case {"messages": _}:
            raise RequestError("messages must be a list of objects.", param="messages")
    raise RequestError("a line needs prompt or messages.", param="prompt")


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


@contextmanager
def _output(path: Path | None, *, append: bool) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("a" if append else "w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror or error}.") from error
    with file:
        if append and path.read_bytes()[-1:] not in (b"", b"\n"):
            file.write("\n")  # an earlier run was cut off in the middle of a line
        yield file


@contextmanager
def _progress(total: int, done: int) -> Iterator[Any]:
    """A bar on stderr; returns what to call for each line."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sapwood.cli.terminal import console

    out = console(stderr=True)
    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task("answered", total=total, completed=done)
        yield lambda: bar.advance(task)
