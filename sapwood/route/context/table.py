"""The part of a router's table that says how long histories may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sapwood.base.errors import ConfigError

Step = Literal["file_reads", "tool_outputs", "summary", "drop"]

ANY = "*"
"""The name for models of which nothing else is said."""


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the histories of a model may be, and how they are shortened.

    Attributes:
        budget: Tokens of a prompt, tools and system prompt among them.
        target: The share of it that is left where something is cut, so that the next cut is some turns away.
        steps: What may be done, the first of all wherever it can, the others as far as they are needed.
        tool_output_tokens: That are left of an old output of a tool, half of its beginning, half of its end.
        keep_last: Messages at the end that stay as they are.
        summary_model: Who sums up what is cut off, and in at most `summary_tokens`, of at most `summary_input` that it reads.
        summary_timeout: Seconds that it has; then the messages are left out without a summary.
        count: Tokens are estimated by bytes, or a server's /tokenize counts them, message by message.
    """

    budget: Annotated[int, Meta(ge=64)]
    target: Annotated[float, Meta(gt=0, le=1)] = 0.6
    steps: tuple[Step, ...] = ("file_reads", "tool_outputs", "drop")
    tool_output_tokens: Annotated[int, Meta(ge=0)] = 200
    keep_last: Annotated[int, Meta(ge=1)] = 4
    summary_model: str | None = None
    summary_tokens: Annotated[int, Meta(ge=16)] = 500
    summary_input: Annotated[int, Meta(ge=64)] = 16_000
    summary_timeout: Annotated[float, Meta(gt=0)] = 60.0
    count: Literal["estimate", "tokenize"] = "estimate"

    def __post_init__(self) -> None:
        if "summary" in self.steps and self.summary_model is None:
            raise ValueError("the step summary wants a summary_model")

    @property
    def cuts(self) -> bool:
        """Whether whole messages may be left out."""
        return "summary" in self.steps or "drop" in self.steps


def check(context: Mapping[str, Context], where: str) -> None:
    """Raises ConfigError."""
    for name, one in context.items():
        if one.summary_model is not None and one.summary_tokens >= one.budget * one.target:
            raise ConfigError(f"{where}: [context.{name}] has no room for summary_tokens within budget and target.")
