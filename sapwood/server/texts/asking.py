"""What bodies of texts to be read have in common, and how the engine is asked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request

from sapwood.base.errors import RequestError
from sapwood.base.task import Task
from sapwood.engine.client import check_task
from sapwood.server.fields import Int, Priority, texts_or_ids
from sapwood.server.front import Front
from sapwood.server.generation import Choice, Prompt, choices_of, complete
from sapwood.text.reading import PARAMS, Asked, Reader

MOST_TEXTS = 2048  # of one request

Input = str | list[str | int | list[int]]
"""A text, token ids, or several of either."""


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Reading(msgspec.Struct, kw_only=True):
    """`truncate_prompt_tokens` has texts cut off at so many tokens, with -1 at as many as the model takes."""

    model: str | None = None
    truncate_prompt_tokens: Int | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    timeout: float | None = None

    def check(self, front: Front, task: type[Task]) -> None:
        """Raise RequestError for what does not depend on texts."""
        front.check_model(self.model)
        check_task(task, front.facts)
        front.deadlines.ask(self.timeout, "timeout")

    def most(self, front: Front) -> int | None:
        """Where texts are cut off."""
        asked, longest = self.truncate_prompt_tokens, Reader(front.text, front.facts).most
        if asked is None or asked == -1:
            return asked and longest
        if not 0 < asked <= longest:
            raise RequestError(
                f"truncate_prompt_tokens must be -1 or from 1 to {longest}, got {asked}.",
                param="truncate_prompt_tokens",
            )
        return asked


async def tokens_of(
    front: Front, given: Input | None, *, param: str, most: int | None, prompt: str | None = None
) -> list[list[int]]:
    """Of each text of a field. Nothing is tokenised before their number is known to be allowed."""
    texts, ids = texts_or_ids(given, param)
    check_number(len(texts or ids), param)
    if texts:
        ids = await front.read(
            lambda reader: [reader.tokens(text, most=most, prompt=prompt) for text in texts],
            texts,
            param=param,
            most=most,
        )
    ids = ids if most is None else [tokens[:most] for tokens in ids]
    for tokens in ids:
        front.check_tokens(tokens, param)
    return ids


def check_number(number: int, param: str) -> None:
    if number > MOST_TEXTS:
        raise RequestError(f"{param} has {number} texts; at most {MOST_TEXTS} in one request.", param=param)


async def read(front: Front, request: Request, asked: Sequence[Asked], body: Reading, *, param: str) -> list[Choice]:
    """Have all read, to the last."""
    prompts = [
        Prompt(ask.tokens, param, body.cache_salt or "", body.priority or 0, scoring=True, task=ask.task)
        for ask in asked
    ]
    choices = choices_of([(prompt, PARAMS) for prompt in prompts], most=2 * MOST_TEXTS)
    await front.attended(request.receive, complete(front, choices))
    return choices


def used(choices: Sequence[Choice]) -> Usage:
    total = sum(len(choice.prompt.tokens) for choice in choices)
    return Usage(total, total)
