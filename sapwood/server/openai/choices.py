"""The choices of a chat, whole and in chunks, and chunks put together again."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.grammar.schema import Finding
from sapwood.server.openai.answers import Answer, AnswerDelta, CallDelta, CalledFunction, ToolCall
from sapwood.server.openai.logprobs import TokenLogprob


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: Answer
    logprobs: Logprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: AnswerDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    matched_stop: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET


class Sum:
    """What the chunks of one choice add up to."""

    def __init__(self, index: int) -> None:
        self._choice = ChatChoice(index=index, message=Answer(None), finish_reason=None)

    def add(self, chunk: ChatChunkChoice) -> None:
        choice, delta = self._choice, chunk.delta
        if delta.content is not UNSET:
            choice.message.content = (choice.message.content or "") + (delta.content or "")
        if delta.reasoning_content is not UNSET:
            before = choice.message.reasoning_content or ""
            choice.message.reasoning_content = before + (delta.reasoning_content or "") or None
        for call in delta.tool_calls or ():
            self._call(call)
        if chunk.logprobs is not None:
            choice.logprobs = choice.logprobs or Logprobs([])
            choice.logprobs.content += chunk.logprobs.content
        if chunk.token_ids is not UNSET:
            choice.token_ids = [*(choice.token_ids or ()), *chunk.token_ids]
        if chunk.finish_reason is not None:
            choice.finish_reason, choice.schema_check = chunk.finish_reason, chunk.schema_check
            choice.stop_reason = None if chunk.stop_reason is UNSET else chunk.stop_reason
            choice.matched_stop = None if chunk.matched_stop is UNSET else chunk.matched_stop

    def whole(self) -> ChatChoice | None:
        """The choice, once it has ended."""
        if self._choice.finish_reason is None:
            return None
        message = self._choice.message
        message.content = message.content or (None if message.tool_calls else "")
        return self._choice

    def _call(self, delta: CallDelta) -> None:
        calls = self._choice.message.tool_calls = self._choice.message.tool_calls or []
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id or "", CalledFunction("", "")))
        if delta.function:
            called = calls[delta.index].function
            called.name += delta.function.name or ""
            called.arguments += delta.function.arguments or ""
