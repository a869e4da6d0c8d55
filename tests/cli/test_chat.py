"""The conversation: what the model is asked, and what the commands do."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest

from sapwood.base.errors import RequestError
from sapwood.cli.chat import Answer, Conversation


class Scripted:
    """Answers with given pieces; raises a piece that is an exception. Remembers what it was asked."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.asked: list[list[dict[str, str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        pass

    def answer(self, messages: list[dict[str, str]], numbers: Answer) -> Iterator[str]:
        self.asked.append([dict(message) for message in messages])
        numbers.prompt_tokens, numbers.cached_tokens, numbers.output_tokens = 20, 16, len(self.pieces)
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def test_history_is_sent_along(capsys: pytest.CaptureFixture[str]) -> None:
    backend = Scripted("Good ", "day")
    talk = Conversation(backend, system="be kind")
    talk.turn("hello")
    talk.turn("again")
    assert backend.asked[1] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Good day"},
        {"role": "user", "content": "again"},
    ]
    assert capsys.readouterr().out == "Good day\nGood day\n"
    assert "20 tokens, 16 of them cached" in talk.command("/stats")


def test_commands() -> None:
    talk = Conversation(Scripted("x"))
    assert "no answer" in talk.command("/stats")
    talk.turn("hello")
    talk.command("/reset")
    assert talk.messages == []
    talk.turn("hello")
    talk.command("/system be brief")
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    talk.command("/system")
    assert talk.messages == []
    assert "/reset" in talk.command("/nonsense")


def test_a_refused_question_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(Scripted(RequestError("too long")))
    talk.turn("hello")
    assert talk.messages == []
    assert "error: too long" in capsys.readouterr().out


def test_an_interrupted_answer_is_kept_as_far_as_it_came() -> None:
    talk = Conversation(Scripted("Good", KeyboardInterrupt()))
    talk.turn("hello")
    assert talk.messages[-1] == {"role": "assistant", "content": "Good"}


def test_the_loop_ends_with_the_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["hello", "", "/help"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    backend = Scripted("hi")
    Conversation(backend).loop()
    assert len(backend.asked) == 1
    assert "/system TEXT" in capsys.readouterr().out
