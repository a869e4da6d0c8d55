"""Serve a small model, ask it questions that share a long system prompt, and show what the prefix cache saved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from sapwood.base.errors import SapwoodError
from sapwood.cli.remote import Remote
from sapwood.cli.terminal import console, print_rows

SYSTEM = Path(__file__).with_name("demo_prompt.txt")
QUESTIONS = (
    "What is the capital of Italy?",
    "Why is the sky blue?",
    "What is the fastest animal on land?",
    "Why does the heart beat?",
)
MAX_TOKENS = 48
DRAIN_SECONDS = 40


@dataclass(frozen=True)
class Answered:
    """One answer in numbers."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_seconds: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.output_tokens - 1) / max(self.seconds - self.first_seconds, 1e-9)


def main() -> int:
    out = console()
    try:
        with serving(*sys.argv[1:]) as url:
            remote = Remote(url)
            model = remote.model()
            answers = [ask(remote, model, question) for question in QUESTIONS]
    except SapwoodError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    rows = [
        (
            question,
            f"{answer.prompt_tokens}",
            f"{answer.cached_tokens}",
            f"{answer.first_seconds * 1000:.0f} ms",
            f"{answer.rate:.1f}",
        )
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    out.print()
    print_rows(out, rows, header=("question", "prompt tokens", "of them cached", "first token after", "tokens/s"))
    cold, warm = answers[0], answers[1:]
    sooner = cold.first_seconds * len(warm) / sum(answer.first_seconds for answer in warm)
    out.print(f"\nWith the system prompt in the prefix cache, the first token comes {sooner:.1f} times sooner.")
    if not all(answer.cached_tokens for answer in warm):
        print("demo: the prefix cache saved nothing, and should have.", file=sys.stderr)
        return 1
    return 0


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """A server on a free port, as its own process; yields its URL and stops it afterwards."""
    command = [sys.executable, "-m", "sapwood", "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                print(line, end="", flush=True)
                if line.startswith("ready at "):
                    break
            else:
                raise SapwoodError(f"the server ended with exit code {server.wait()} before it was ready.")
            yield line.split()[2]
        finally:
            server.terminate()
            try:
                server.wait(DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(remote: Remote, model: str, question: str) -> Answered:
    """Print question and answer as it streams."""
    messages = [{"role": "system", "content": SYSTEM.read_text("utf-8")}, {"role": "user", "content": question}]
    print(f"\n> {question}")
    began, first, usage = perf_counter(), 0.0, None
    for chunk in remote.chat(messages, model=model, max_tokens=MAX_TOKENS, temperature=0):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                first = first or perf_counter() - began
                print(text, end="", flush=True)
    print()
    if usage is None or not first:
        raise SapwoodError("the answer was empty or came without usage.")
    return Answered(
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        output_tokens=usage["completion_tokens"],
        first_seconds=first,
        seconds=perf_counter() - began,
    )


if __name__ == "__main__":
    sys.exit(main())
