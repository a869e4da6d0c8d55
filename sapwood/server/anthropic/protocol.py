"""The bodies of Anthropic's routes. Null means 'not given' everywhere.

Fields that are not declared are ignored, as they are hints or of no use here (`metadata`, `service_tier`, `cache_control`,
`context_management`: everything is cached, and nothing is left out), but for those of `REFUSED`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from sapwood.base.grammar import Grammar
from sapwood.grammar.spellings import Asked, one_of
from sapwood.server.anthropic.history import GivenBlock, GivenMessage
from sapwood.server.anthropic.tools import GivenChoice, GivenTool
from sapwood.server.fields import Count, Int, Priority
from sapwood.server.prediction import Predicted
from sapwood.server.refusals import Refused, Table

REFUSED: Table = {
    **dict.fromkeys(("container", "fallbacks", "mcp_servers", "thread"), Refused()),
    **dict.fromkeys(("n", "best_of"), Refused("send several requests", (None, 1))),
    **dict.fromkeys(("logprobs", "top_logprobs"), Refused("/v1/chat/completions has it")),
    "stop": Refused("give stop_sequences"),
    "response_format": Refused("give output_config.format"),
    "max_completion_tokens": Refused("give max_tokens", (None,)),
    "max_tokens_to_sample": Refused("give max_tokens", (None,)),
    "prompt": Refused("give messages", (None,)),
}


class GivenThinking(msgspec.Struct, kw_only=True):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """What makes a prompt. `output_format` is an older name of `output_config.format`; `chat_template_kwargs` is ours."""

    model: str | None = None
    messages: list[GivenMessage]
    system: str | list[GivenBlock] | None = None
    tools: list[GivenTool] | None = None
    tool_choice: GivenChoice | None = None
    thinking: GivenThinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def effort(self) -> str | None:
        """As templates know it."""
        given = None if self.output_config is None else self.output_config.effort
        return "high" if given in ("xhigh", "max") else given

    def asked(self) -> Asked | None:
        """What the text has to match. Raises RequestError for two formats."""
        return one_of(self._formats())

    def _formats(self) -> Iterator[Asked]:
        if self.output_config is not None and self.output_config.format is not None:
            yield Asked(Grammar.json(self.output_config.format.schema), "output_config.format.schema")
        if self.output_format is not None:
            yield Asked(Grammar.json(self.output_format.schema), "output_format.schema")


class MessagesRequest(CountRequest, kw_only=True):
    """The fields below `top_p` are not Anthropic's."""

    max_tokens: Count
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Int | None = None
    ignore_eos: bool | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    prediction: Predicted | str | None = None
