"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from sapwood.apply import template_of
from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.server.body import field_error, json_response
from sapwood.server.conversation import Ask, Turn, begin
from sapwood.server.fields import Count
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, Prompt, complete
from sapwood.server.openai.answers import Answer, AnswerDelta, Speaker
from sapwood.server.openai.apply import edit_in, merged_by_lines, to_merge
from sapwood.server.openai.choices import ChatChoice, ChatChunkChoice, Logprobs
from sapwood.server.openai.logprobs import token_logprobs
from sapwood.server.openai.protocol import ChatRequest
from sapwood.server.openai.replies import (
    Reply,
    event_stream,
    new_reply,
    prompt_logprobs,
    stop_reason,
    usage_of,
    version_of,
    whole_stream,
)
from sapwood.server.openai.stored import keep, kept_when_over
from sapwood.server.openai.tools import toolbox_of
from sapwood.server.passage import caller
from sapwood.server.prediction import predicted_text
from sapwood.server.refusals import CHAT
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.thinking import Budget, template_fields

_BUDGETS = ("thinking_budget", "thinking_token_budget", "max_thinking_tokens")
_KWARGS_BUDGET = "chat_template_kwargs.thinking_budget"


def routes(front: Front) -> list[Described]:
    template = template_of(front.config.model.apply_template, front.model_name)

    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, with thoughts and calls of tools where the model has them."""
        body.check(front)
        ask, edit = await _ask(front, body), edit_in(body)
        if edit is not None:
            if (merged := await merged_by_lines(edit)) is not None:
                return _at_once(front, body, ask, merged)
            ask = to_merge(ask, edit, template, greedy=body.temperature is None)
        turn = await begin(front, ask)
        speaker = Speaker(front, turn, offered=ask.toolbox is not None)
        if body.stream:
            reply = new_reply(front, "chat.completion.chunk", "chatcmpl")
            plain = _plain if turn.plain and not (body.logprobs or body.return_token_ids or body.store) else None
            shape = _shaper(front, body, turn, speaker)
            if body.store:
                shape = kept_when_over(front, caller(request), body, reply, turn.choices, shape)
            return event_stream(front, turn.choices, reply, body.usage_options, shape=shape, plain=plain)
        await front.attended(request.receive, complete(front, turn.choices))
        reply = new_reply(front, "chat.completion", "chatcmpl")
        reply.choices = [_choice(front, body, choice, turn, speaker) for choice in turn.choices]
        reply.usage = usage_of(turn.choices, drafts=body.speculation_details)
        reply.weight_version = version_of(turn.choices)
        if body.prompt_logprobs is not None:
            reply.prompt_logprobs = prompt_logprobs(
                front.text, turn.choices[0].prompt_logprobs, ask.params.logprob_token_ids
            )
        if body.return_token_ids:
            reply.prompt_token_ids = turn.prompt.tokens
        if body.store:
            keep(front, caller(request), body, reply)
        return json_response(reply)

    return [
        post(
            front,
            "/v1/chat/completions",
            ChatRequest,
            chat_completions,
            refused=CHAT,
            gives=Reply[ChatChoice],
            streams=Streamed(Reply[ChatChunkChoice]),
        )
    ]


def _at_once(front: Front, body: ChatRequest, ask: Ask, text: str) -> Response:
    """An answer that no model has to give."""
    choice = Choice(0, Prompt([], "messages"), ask.params, texts=[text], finish="stop")
    if not body.stream:
        reply = new_reply(front, "chat.completion", "chatcmpl")
        reply.choices, reply.usage = (
            [ChatChoice(index=0, message=Answer(text), finish_reason="stop")],
            usage_of([choice]),
        )
        return json_response(reply)

    def shape(news: News) -> Iterator[ChatChunkChoice]:
        yield ChatChunkChoice(index=0, delta=AnswerDelta(role="assistant", content=text))
        yield ChatChunkChoice(index=0, delta=AnswerDelta(), finish_reason="stop")

    reply = new_reply(front, "chat.completion.chunk", "chatcmpl")
    return whole_stream([choice], reply, body.usage_options, shape=shape)


async def _ask(front: Front, body: ChatRequest) -> Ask:
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    params, asked = await _params(front, body, limit), body.asked()
    return Ask(
        params=params,
        format=asked,
        toolbox=toolbox_of(body, reads=front.text.dialect.tools is not None),
        talk=body.talk(**template_fields(body.enable_thinking, body.reasoning_effort)),
        budget=_budget(body),
        salt=body.salt,
        priority=body.priority or 0,
        limit_param=limit,
        split=body.separate_reasoning is not False,
        prediction=predicted_text(body.prediction),
    )


async def _params(front: Front, body: ChatRequest, limit: str) -> SamplingParams:
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    names = {"logprobs": "top_logprobs", "max_tokens": limit}
    return await body.sampling(front, max_tokens=getattr(body, limit), logprobs=logprobs, names=names)


def _budget(body: ChatRequest) -> Budget | None:
    for name in _BUDGETS:
        value = getattr(body, name)
        if value is not None:
            return Budget(value, name)
    try:
        value = msgspec.convert((body.chat_template_kwargs or {}).get("thinking_budget"), Count | None)
    except msgspec.ValidationError as error:
        raise field_error(error, within=_KWARGS_BUDGET) from None
    return None if value is None else Budget(value, _KWARGS_BUDGET)


def _choice(front: Front, body: ChatRequest, choice: Choice, turn: Turn, speaker: Speaker) -> ChatChoice:
    answer, finish = speaker.whole(choice)
    return ChatChoice(
        index=choice.index,
        message=answer,
        logprobs=Logprobs(token_logprobs(front.text, choice.logprobs, choice.params.logprob_token_ids))
        if body.logprobs
        else None,
        finish_reason=finish,
        stop_reason=stop_reason(front, choice),
        matched_stop=choice.stop,
        token_ids=choice.tokens if body.return_token_ids else UNSET,
        schema_check=turn.finding(choice) or UNSET,
    )


def _shaper(
    front: Front, body: ChatRequest, turn: Turn, speaker: Speaker
) -> Callable[[News], Iterator[ChatChunkChoice]]:
    """How news become entries of `choices`: the role first, then text, and the reason of the end with the last."""

    def shape(news: News) -> Iterator[ChatChunkChoice]:
        choice = news.choice
        if news.first:
            yield ChatChunkChoice(index=choice.index, delta=speaker.first())
        deltas, finish = speaker.deltas(news)
        if not deltas and (finish or body.logprobs or body.return_token_ids):
            deltas = [AnswerDelta()]
        entries = [ChatChunkChoice(index=choice.index, delta=delta) for delta in deltas]
        if entries and body.logprobs:
            told = token_logprobs(front.text, news.logprobs, choice.params.logprob_token_ids)
            entries[0].logprobs = Logprobs(told)
        if entries and body.return_token_ids:
            entries[0].token_ids = news.tokens
        if finish:
            entries[-1].finish_reason = finish
            entries[-1].stop_reason, entries[-1].matched_stop = stop_reason(front, choice), choice.stop
            entries[-1].schema_check = turn.finding(choice) or UNSET
        yield from entries

    return shape


def _plain(index: int, text: str) -> ChatChunkChoice:
    """The entry of text alone."""
    return ChatChunkChoice(index=index, delta=AnswerDelta(content=text))
