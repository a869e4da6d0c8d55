"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, Prompt, choices_of, complete
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
from sapwood.text import TextModel


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class Answer(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: Answer
    logprobs: Logprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class AnswerDelta(msgspec.Struct):
    content: str | UnsetType = UNSET
    role: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: AnswerDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


def routes(front: Front) -> list[Route]:
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        params = await front.restrict(_params(front, body), body.asked())
        prompt = await _prompt(front, body)
        choices = choices_of([(prompt, params)])
        if body.stream:
            reply = new_reply(front, "chat.completion.chunk", "chatcmpl")
            plain = None if body.logprobs or body.return_token_ids else _plain
            return event_stream(front, choices, reply, body.stream_options, shape=_shaper(front, body), plain=plain)
        await front.attended(request.receive, complete(front, choices))
        reply = new_reply(front, "chat.completion", "chatcmpl")
        reply.choices = [_choice(front, body, choice) for choice in choices]
        reply.usage = usage_of(choices)
        if body.prompt_logprobs is not None:
            reply.prompt_logprobs = prompt_logprobs(front.text, choices[0].prompt_logprobs)
        if body.return_token_ids:
            reply.prompt_token_ids = prompt.tokens
        return json_response(reply)

    return [post(front, "/v1/chat/completions", ChatRequest, chat_completions)]


def _params(front: Front, body: ChatRequest) -> SamplingParams:
    names = {"logprobs": "top_logprobs"}
    max_tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
        names["max_tokens"] = "max_completion_tokens"
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if body.echo:
        raise RequestError("echo is for /v1/completions.", param="echo", code="unsupported_parameter")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return body.sampling(front, max_tokens=max_tokens, logprobs=logprobs, names=names)


async def _prompt(front: Front, body: ChatRequest) -> Prompt:
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    tokens = await body.tokens(front, add_special=bool(body.add_special_tokens), **effort)
    front.check_tokens(tokens, "messages")
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return Prompt(tokens, "messages", body.cache_salt or "", body.priority or 0, limit_param=limit)


def _choice(front: Front, body: ChatRequest, choice: Choice) -> ChatChoice:
    return ChatChoice(
        index=choice.index,
        message=Answer(choice.text),
        logprobs=_logprobs(front.text, choice.logprobs) if body.logprobs else None,
        finish_reason=choice.finish,
        stop_reason=stop_reason(front, choice),
        token_ids=choice.tokens if body.return_token_ids else UNSET,
    )


def _shaper(front: Front, body: ChatRequest) -> Callable[[News], Iterator[ChatChunkChoice]]:
    """How news become entries of `choices`: the role first, then text, and the reason of the end with the last."""

    def shape(news: News) -> Iterator[ChatChunkChoice]:
        choice = news.choice
        if news.first:
            yield ChatChunkChoice(index=choice.index, delta=AnswerDelta(content="", role="assistant"))
        if not (news.text or choice.finish or body.logprobs or body.return_token_ids):
            return
        entry = ChatChunkChoice(index=choice.index, delta=AnswerDelta(content=news.text or UNSET))
        if body.logprobs:
            entry.logprobs = _logprobs(front.text, news.logprobs)
        if body.return_token_ids:
            entry.token_ids = news.tokens
        if choice.finish:
            entry.finish_reason = choice.finish
            entry.stop_reason = stop_reason(front, choice)
        yield entry

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
