"""An output token by token, however many come at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from sapwood.base.news import FinishReason
from sapwood.base.wire import Delta
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News


class Pieces:
    """Takes the news of a choice apart, so that the logprobs of each token stand with its text."""

    def __init__(self, front: Front, choice: Choice) -> None:
        self._assembler = front.text.assembler(choice.params, shown=choice.prompt.shown)

    def __call__(self, news: News) -> Iterator[News]:
        choice, num_before = news.choice, max(len(news.tokens) - 1, 0)
        growing = replace(choice, finish=None)
        for index, token in enumerate(news.tokens[:num_before]):
            text = self._assembler.take(Delta(0, [token])).text
            yield News(growing, text, [token], news.logprobs[index : index + 1], news.first and index == 0)
        stop = choice.stop if isinstance(choice.stop, int) else None  # stop strings are found again
        last = Delta(0, news.tokens[num_before:], finish=cast(FinishReason | None, choice.finish), stop=stop)
        text = self._assembler.take(last).text
        yield News(choice, text, news.tokens[num_before:], news.logprobs[num_before:], news.first and not num_before)
