"""The body of a request for a response, and what it says about tokens, thoughts and formats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.spellings import Asked, one_of
from sapwood.server.fields import Count, Int
from sapwood.server.front import Front
from sapwood.server.openai.metadata import Metadata
from sapwood.server.openai.protocol import Sampling
from sapwood.server.thinking import Budget

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
# The others tell more of tools and inputs that there are none of.
_INCLUDABLE = (
    LOGPROBS, ENCRYPTED, "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip


class Format(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Of a text. `strict`: a schema that a grammar cannot follow as a whole is refused."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None

    def asked(self) -> Asked | None:
        match self.type:
            case "text":
                return None
            case "json_object":
                return Asked(Grammar.json(), "text.format")
            case "json_schema":
                if self.schema is None:
                    raise RequestError("text.format.schema is missing.", param="text.format.schema")
                return Asked(Grammar.json(self.schema), "text.format.schema", bool(self.strict))
        raise RequestError(
            f"text.format.type must be text, json_object or json_schema, got {self.type!r}.", param="text.format.type"
        )


class Text(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`verbosity` is told to the template, if it asks."""

    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """`summary` changes nothing: thoughts are told as they are."""

    effort: str | None = None
    summary: str | None = None


class ResponseRequest(Sampling, kw_only=True):
    """`user`, `safety_identifier`, `service_tier`, `prompt_cache_key` and `max_tool_calls` never change the result."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Int | None = None
    top_logprobs: Int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    max_tool_calls: Int | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_budget: Count | None = None

    def check(self, front: Front) -> None:
        super().check(front)
        for name in self.include or ():
            if name not in _INCLUDABLE:
                raise RequestError(
                    f"include: {name!r} is not known; it takes {', '.join(_INCLUDABLE)}.", param="include"
                )
        if self.top_logprobs and not self.with_logprobs:
            raise RequestError(f'top_logprobs needs include: ["{LOGPROBS}"].', param="top_logprobs")
        if self.background and self.store is False:
            raise RequestError(
                "background needs store: how else would the response be found again?", param="background"
            )

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def encrypts(self) -> bool:
        return ENCRYPTED in (self.include or ())

    @property
    def budget(self) -> Budget | None:
        return None if self.thinking_budget is None else Budget(self.thinking_budget, "thinking_budget")

    def format(self) -> Asked | None:
        """What the text has to match."""
        return one_of(chain(self._format(), filter(None, (self.asked(),))))

    async def params(self, front: Front) -> SamplingParams:
        return await self.sampling(
            front,
            max_tokens=self.max_output_tokens,
            logprobs=(self.top_logprobs or 0) if self.with_logprobs else None,
            names={"logprobs": "top_logprobs", "max_tokens": "max_output_tokens"},
        )

    def template(self) -> dict[str, Any]:
        """More arguments of the template."""
        fields: dict[str, Any] = {}
        thinks, effort = self.enable_thinking, self.reasoning.effort if self.reasoning else None
        if effort == "none":
            thinks = False if thinks is None else thinks
        elif effort is not None:
            fields["reasoning_effort"] = effort
        if thinks is not None:
            fields |= {"enable_thinking": thinks, "thinking": thinks}
        if self.text is not None and self.text.verbosity is not None:
            fields["verbosity"] = self.text.verbosity
        return fields | (self.chat_template_kwargs or {})

    def _format(self) -> Iterator[Asked]:
        if self.text is not None and self.text.format is not None and (asked := self.text.format.asked()):
            yield asked
