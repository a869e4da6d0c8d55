"""A response and the items that a model writes, as clients are told of them."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.base.sampling import SamplingParams
from sapwood.server.front import Front
from sapwood.server.openai.logprobs import TokenLogprob
from sapwood.server.openai.replies import DraftDetails
from sapwood.server.openai.responses.protocol import Format, Reasoning, ResponseRequest, Text
from sapwood.server.prediction import PredictionDetails


class OutputText(msgspec.Struct, kw_only=True, tag="output_text", tag_field="type"):
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag="reasoning_text", tag_field="type"):
    text: str = ""


class Message(msgspec.Struct, kw_only=True, tag="message", tag_field="type"):
    id: str
    status: str = "in_progress"
    role: str = "assistant"
    content: list[OutputText] = []


class Thought(msgspec.Struct, kw_only=True, tag="reasoning", tag_field="type"):
    id: str
    status: str = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []
    encrypted_content: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True, tag="function_call", tag_field="type"):
    id: str
    status: str = "in_progress"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str = ""


class CustomCall(msgspec.Struct, kw_only=True, tag="custom_tool_call", tag_field="type"):
    id: str
    status: str = "in_progress"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    input: str = ""


OutputItem = Message | Thought | FunctionCall | CustomCall


class Failure(msgspec.Struct):
    code: str
    message: str


class Incomplete(msgspec.Struct):
    reason: str = "max_output_tokens"


class InputDetails(msgspec.Struct):
    """`cache_write_tokens`: what was not cached and is now; `left_out_tokens`: what was not computed, where the server leaves some out."""

    cached_tokens: int
    cache_write_tokens: int
    left_out_tokens: int | UnsetType = UNSET


class OutputDetails(PredictionDetails, kw_only=True):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    speculation: dict[str, DraftDetails] | UnsetType = UNSET


class Response(msgspec.Struct, kw_only=True):
    """`status`: queued or in_progress, then completed, incomplete, failed or cancelled."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"
    background: bool
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: Text
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: Usage | None = None
    user: str | None


def response_of(front: Front, body: ResponseRequest, params: SamplingParams) -> Response:
    """The response that a request gets, of which nothing has been said yet."""
    format = body.text.format if body.text is not None else None
    return Response(
        id=f"resp_{secrets.token_hex(24)}",
        created_at=int(time.time()),
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=front.answering,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=body.reasoning or Reasoning(),
        safety_identifier=body.safety_identifier,
        store=body.kept,
        temperature=params.temperature,
        text=msgspec.structs.replace(body.text or Text(), format=format or Format(type="text")),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
    )
