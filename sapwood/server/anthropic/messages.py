"""/v1/messages, and how many tokens messages have."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.sampling import SamplingParams
from sapwood.server.anthropic.answers import AnsweredMessage, Events, Speaker, StreamEvent
from sapwood.server.anthropic.history import talk_of
from sapwood.server.anthropic.protocol import REFUSED, CountRequest, MessagesRequest
from sapwood.server.anthropic.tools import toolbox_of
from sapwood.server.body import json_response
from sapwood.server.calling import Toolbox
from sapwood.server.conversation import Ask, begin, prompt_of
from sapwood.server.front import Front, Talk
from sapwood.server.generation import complete
from sapwood.server.prediction import predicted_text
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.sse import EventStream
from sapwood.server.thinking import Budget, template_fields

_AS_THEY_ARE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "ignore_eos")


class TokenCount(msgspec.Struct):
    input_tokens: int


def routes(front: Front) -> list[Described]:
    async def messages(request: Request, body: MessagesRequest) -> Response:
        """An answer to messages, as Anthropic has it: whole or as events."""
        front.check_model(body.model)
        turn = await begin(front, _ask(front, body))
        hides = body.thinking is not None and body.thinking.display == "omitted"
        speaker = Speaker(front, turn, most=body.max_tokens, hides=hides)
        if body.stream:
            return EventStream(front, turn.choices, Events(speaker))
        await front.attended(request.receive, complete(front, turn.choices))
        return json_response(speaker.whole(turn.choices[0]))

    async def count_tokens(request: Request, body: CountRequest) -> Response:
        """How many tokens messages have as a prompt."""
        front.check_model(body.model)
        rendered = await prompt_of(front, _talk(body), _toolbox(front, body))
        return json_response(TokenCount(len(rendered.tokens)))

    return [
        post(
            front, "/v1/messages", MessagesRequest, messages, refused=REFUSED, gives=AnsweredMessage,
            streams=Streamed(StreamEvent),
        ),
        post(front, "/v1/messages/count_tokens", CountRequest, count_tokens, refused=REFUSED, gives=TokenCount),
    ]  # fmt: skip


def _ask(front: Front, body: MessagesRequest) -> Ask:
    return Ask(
        talk=_talk(body),
        toolbox=_toolbox(front, body),
        budget=_budget(front, body),
        format=body.asked(),
        params=_params(front, body),
        salt=body.cache_salt or "",
        priority=body.priority or 0,
        clipped=True,
        scoring=body.max_tokens == 0,
        prediction=predicted_text(body.prediction),
    )


def _talk(body: CountRequest) -> Talk:
    think = None if body.thinking is None else body.thinking.type != "disabled"
    template: dict[str, Any] = template_fields(think, body.effort) | (body.chat_template_kwargs or {})
    return talk_of(body.messages, body.system, template)


def _toolbox(front: Front, body: CountRequest) -> Toolbox | None:
    return toolbox_of(body.tools, body.tool_choice, reads=front.text.dialect.tools is not None)


def _budget(front: Front, body: MessagesRequest) -> Budget | None:
    """Of thoughts. Agents ask for some of every model; one that has none is asked in vain."""
    given = body.thinking
    if given is None or front.text.dialect.reasoning is None:
        return None
    if given.type == "disabled":
        return Budget(0, "thinking")
    return None if given.budget_tokens is None else Budget(given.budget_tokens, "thinking.budget_tokens")


def _params(front: Front, body: MessagesRequest) -> SamplingParams:
    given = {name: value for name in _AS_THEY_ARE if (value := getattr(body, name)) is not None}
    given |= {"max_tokens": max(body.max_tokens, 1), "stop": tuple(body.stop_sequences or ())}  # 0 only fills the cache
    return front.check(SamplingParams(**(front.defaults | given)), {"stop": "stop_sequences"})
