"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.schema import Finding
from sapwood.server.errors import unsupported
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, Prompt, choices_of, complete
from sapwood.server.openai.answers import Answer, AnswerDelta, Reader
from sapwood.server.openai.protocol import ChatRequest
from sapwood.server.openai.replies import (
    event_stream,
    finite,
    json_response,
    new_reply,
    post,
    prompt_logprobs,
    stop_reason,
    usage_of,
)
from sapwood.server.openai.thinking import bounded
from sapwood.server.openai.tools import EndChecks, Toolbox, end_checks_of, grammar_of, toolbox_of
from sapwood.server.refusals import CHAT
from sapwood.text import TextModel
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Said


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a request's outputs are made and read."""

    prompt: Prompt
    params: SamplingParams
    toolbox: Toolbox | None
    thoughts: Thoughts
    split: bool
    past_calls: int
    reads: bool
    end_checks: EndChecks | None

    def reader(self, front: Front) -> Reader | None:
        """One per output; None where the output is the answer as it is."""
        if not self.reads:
            return None
        return Reader(front, self.toolbox, self.thoughts, split=self.split, past=self.past_calls)

    def check(self, front: Front, choice: Choice) -> Finding | UnsetType:
        """What is found of a complete output, where its grammar leaves something to check."""
        if self.end_checks is None:
            return UNSET
        reader = replace(self, split=True).reader(front)
        return front.checked(self.end_checks(Said(choice.text, "", []) if reader is None else reader.said(choice.text)))


def routes(front: Front) -> list[Route]:
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        plan = await _plan(front, body)
        choices = choices_of([(plan.prompt, plan.params)])
        if body.stream:
            reply = new_reply(front, "chat.completion.chunk", "chatcmpl")
            plain = None if body.logprobs or body.return_token_ids or plan.reads else _plain
            shape = _shaper(front, body, plan)
            return event_stream(front, choices, reply, body.stream_options, shape=shape, plain=plain)
        await front.attended(request.receive, complete(front, choices))
        reply = new_reply(front, "chat.completion", "chatcmpl")
        reply.choices = [_choice(front, body, choice, plan) for choice in choices]
        reply.usage = usage_of(choices)
        if body.prompt_logprobs is not None:
            reply.prompt_logprobs = prompt_logprobs(front.text, choices[0].prompt_logprobs)
        if body.return_token_ids:
            reply.prompt_token_ids = plan.prompt.tokens
        return json_response(reply)

    return [post(front, "/v1/chat/completions", ChatRequest, chat_completions, refused=CHAT)]


def _params(front: Front, body: ChatRequest) -> SamplingParams:
    names = {"logprobs": "top_logprobs"}
    max_tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
        names["max_tokens"] = "max_completion_tokens"
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if body.echo:
        raise unsupported("echo", "it is for /v1/completions")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return body.sampling(front, max_tokens=max_tokens, logprobs=logprobs, names=names)


async def _plan(front: Front, body: ChatRequest) -> Plan:
    dialect = front.text.dialect
    params, asked = _params(front, body), body.asked()
    toolbox = toolbox_of(body, reads=dialect.tools is not None)
    rendered = await body.rendered(front, add_special=bool(body.add_special_tokens), **_template_fields(body, toolbox))
    front.check_tokens(rendered.tokens, "messages")
    reads = dialect.reasoning is not None or (toolbox is not None and bool(toolbox.offers))
    shown = front.text.markers(calls=toolbox is not None) if reads else frozenset()
    grammar = await grammar_of(front, toolbox, asked, rendered.thoughts)
    if grammar is not None:
        params = msgspec.structs.replace(params, grammar=grammar.grammar)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return Plan(
        prompt=Prompt(rendered.tokens, "messages", body.salt, body.priority or 0, limit_param=limit, shown=shown),
        params=bounded(front, body, params, rendered.thoughts),
        toolbox=toolbox,
        thoughts=rendered.thoughts,
        split=body.separate_reasoning is not False,
        past_calls=sum(len(message.get("tool_calls") or ()) for message in body.messages or ()),
        reads=reads,
        end_checks=await end_checks_of(front, toolbox, asked, grammar),
    )


def _template_fields(body: ChatRequest, toolbox: Toolbox | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.reasoning_effort is not None:
        fields["reasoning_effort"] = body.reasoning_effort
    if body.enable_thinking is not None:
        fields |= {"enable_thinking": body.enable_thinking, "thinking": body.enable_thinking}
    if toolbox is not None:
        fields["tools"] = toolbox.told
    return fields


def _choice(front: Front, body: ChatRequest, choice: Choice, plan: Plan) -> ChatChoice:
    reader = plan.reader(front)
    answer, finish = (Answer(choice.text), choice.finish) if reader is None else reader.whole(choice)
    return ChatChoice(
        index=choice.index,
        message=answer,
        logprobs=_logprobs(front.text, choice.logprobs) if body.logprobs else None,
        finish_reason=finish,
        stop_reason=stop_reason(front, choice),
        matched_stop=choice.stop,
        token_ids=choice.tokens if body.return_token_ids else UNSET,
        schema_check=plan.check(front, choice),
    )


def _shaper(front: Front, body: ChatRequest, plan: Plan) -> Callable[[News], Iterator[ChatChunkChoice]]:
    """How news become entries of `choices`: the role first, then text, and the reason of the end with the last."""
    readers: dict[int, Reader] = {}
    content = "" if plan.toolbox is None else None
    thought = UNSET if front.text.dialect.reasoning is None else None

    def read(news: News) -> tuple[list[AnswerDelta], str | None]:
        reader = readers.get(news.choice.index) or plan.reader(front)
        if reader is None:
            return [AnswerDelta(content=news.text or UNSET)] if news.text else [], news.choice.finish
        readers[news.choice.index] = reader
        return reader.deltas(news)

    def shape(news: News) -> Iterator[ChatChunkChoice]:
        choice = news.choice
        if news.first:
            delta = AnswerDelta(content=content, role="assistant", reasoning_content=thought)
            yield ChatChunkChoice(index=choice.index, delta=delta)
        deltas, finish = read(news)
        if not deltas and (finish or body.logprobs or body.return_token_ids):
            deltas = [AnswerDelta()]
        entries = [ChatChunkChoice(index=choice.index, delta=delta) for delta in deltas]
        if entries and body.logprobs:
            entries[0].logprobs = _logprobs(front.text, news.logprobs)
        if entries and body.return_token_ids:
            entries[0].token_ids = news.tokens
        if finish:
            entries[-1].finish_reason = finish
            entries[-1].stop_reason, entries[-1].matched_stop = stop_reason(front, choice), choice.stop
            entries[-1].schema_check = plan.check(front, choice)
        yield from entries

    return shape


def _plain(index: int, text: str) -> ChatChunkChoice:
    """The entry of text alone."""
    return ChatChunkChoice(index=index, delta=AnswerDelta(content=text))


def _logprobs(text: TextModel, entries: Sequence[TokenLogprobs]) -> Logprobs:
    def told(id: int, logprob: float) -> TopLogprob:
        return TopLogprob(text.token_text(id), finite(logprob), list(text.token_bytes(id)))

    content = []
    for entry in entries:
        top = [told(id, value) for id, value in zip(entry.top_ids, entry.top_logprobs, strict=True)]
        chosen = told(entry.token, entry.logprob)
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return Logprobs(content)
