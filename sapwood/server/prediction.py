"""Predicted outputs in bodies: how clients write them, and the tokens that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.base.errors import RequestError
from sapwood.server.fields import ContentPart
from sapwood.server.front import Front
from sapwood.server.generation import Choice


class Predicted(msgspec.Struct):
    """OpenAI's: the content is a text, or parts of it."""

    content: str | list[ContentPart]
    type: Literal["content"] = "content"


class PredictionDetails(msgspec.Struct, kw_only=True):
    """Of a prediction, how many of its tokens came true in the output, and how many did not."""

    accepted_prediction_tokens: int | UnsetType = UNSET
    rejected_prediction_tokens: int | UnsetType = UNSET

    def count(self, choices: Sequence[Choice]) -> None:
        """Tell it of these outputs together, if anything was predicted of them."""
        if any(choice.params.prediction for choice in choices):
            self.accepted_prediction_tokens = sum(choice.num_predicted for choice in choices)
            self.rejected_prediction_tokens = sum(choice.num_mispredicted for choice in choices)


def predicted_text(given: Predicted | str | None, param: str = "prediction") -> str:
    """The text of a `prediction`, empty where there is none. Raises RequestError for parts that are no text."""
    if given is None or isinstance(given, str):
        return given or ""
    if isinstance(given.content, str):
        return given.content
    for number, part in enumerate(given.content):
        if part.type != "text" or part.text is None:
            where = f"{param}.content[{number}]"
            raise RequestError(f"{where} must be of type text and hold a text; got type {part.type!r}.", param=where)
    return "".join(part.text or "" for part in given.content)


async def predicted(front: Front, text: str, param: str = "prediction") -> tuple[int, ...]:
    """A prediction's tokens, no more than an output can have."""
    if not text:
        return ()
    tokens = await front.encode(text, param=param, add_special=False)
    return tuple(tokens[: front.facts.max_model_len])
