"""/v1/apply: a snippet with marks for what stays is merged into a file; and the same as a chat that asks for nothing else."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Literal

import anyio.to_thread
import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sapwood.apply import (
    CLOSING,
    Answered,
    Edit,
    Problem,
    Unclear,
    answered,
    by_anchors,
    check,
    conversation,
    edit_of,
    template_of,
)
from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.server.body import json_response
from sapwood.server.conversation import Ask, Turn, begin
from sapwood.server.fields import Int, Priority, salt_of
from sapwood.server.front import Front, Talk
from sapwood.server.generation import Choice, News, complete
from sapwood.server.openai.protocol import ChatRequest
from sapwood.server.openai.replies import Usage, usage_of
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.sse import DONE, EVENTS, EventStream, Script, frame

_SPARE = 64  # tokens that a merged file may have beyond those of the file and the update
_MOST_TOLD = 50  # problems


class ApplyRequest(msgspec.Struct, kw_only=True):
    """`method`: `anchors` refuses what lines alone do not tell, `model` leaves all to the model, `auto` tries the first first."""

    code: str
    update: str
    instruction: str = ""
    model: str | None = None
    method: Literal["auto", "anchors", "model"] = "auto"
    template: str | None = None
    stream: bool | None = None
    max_tokens: Int | None = None
    temperature: float = 0.0
    seed: Int | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    timeout: float | None = None

    @property
    def edit(self) -> Edit:
        return Edit(self.instruction, self.code, self.update)


class Verdict(msgspec.Struct):
    """Whether the file is as asked, as far as its lines tell: what the update does not show is untouched, and all that it shows
    is there."""

    ok: bool
    problems: list[Problem]


class Applied(msgspec.Struct, kw_only=True):
    """The merged file, or in a stream `delta`, more of it, with all else in the last event. `unclear` is why the model was asked."""

    id: str
    object: str
    created: int
    model: str
    code: str | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    method: str | UnsetType = UNSET
    unclear: str | UnsetType = UNSET
    check: Verdict | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET


def routes(front: Front) -> list[Described]:
    template = template_of(front.config.model.apply_template, front.model_name)

    async def apply(request: Request, body: ApplyRequest) -> Response:
        """Merge a snippet with "... existing code ..." marks into a file, by its lines alone or by the model."""
        front.check_model(body.model)
        front.deadlines.ask(body.timeout, "timeout")
        reply = Applied(
            id=f"apply-{uuid.uuid4().hex}",
            object="apply.chunk" if body.stream else "apply",
            created=int(time.time()),
            model=front.answering,
        )
        merged = None
        if body.method != "model":
            try:
                merged = await anyio.to_thread.run_sync(by_anchors, body.edit)
            except Unclear as error:
                reply.unclear = str(error)
                if body.method == "anchors":
                    raise RequestError(
                        f"update: {error}. Leave method out to have the model merge it.", param="update"
                    ) from None
        if merged is not None:
            reply.method, reply.check, reply.usage = "anchors", Verdict(True, []), usage_of([])
            return _at_once(reply, merged) if body.stream else json_response(_with(reply, code=merged))
        reply.method = "model"
        turn = await begin(front, await _ask(front, body, template))
        if body.stream:
            return EventStream(front, turn.choices, _Script(body.edit, turn, reply))
        await front.attended(request.receive, complete(front, turn.choices))
        choice = turn.choices[0]
        code = answered(turn.said(choice).text, body.code)
        reply.check, reply.usage = await _verdict(body.edit, code, choice), usage_of(turn.choices)
        return json_response(_with(reply, code=code))

    return [post(front, "/v1/apply", ApplyRequest, apply, gives=Applied, streams=Streamed(Applied))]


def _with(reply: Applied, **fields: str) -> Applied:
    return msgspec.structs.replace(reply, **fields)


def _at_once(reply: Applied, merged: str) -> Response:
    """A stream of what is there already."""
    bare = Applied(id=reply.id, object=reply.object, created=reply.created, model=reply.model, delta=merged)
    return Response(frame(bare) + frame(reply) + DONE, media_type=EVENTS)


async def _ask(front: Front, body: ApplyRequest, template: str) -> Ask:
    """What the model is asked, the file as it was being the prediction. What it says ends where a merged file must have."""
    most = body.max_tokens
    if most is None:
        texts = await front.encode_all([body.code, body.update], param="code", add_special=False)
        most = sum(map(len, texts)) + _SPARE
    params = front.check(SamplingParams(temperature=body.temperature, seed=body.seed, max_tokens=most), {})
    ask = Ask(
        talk=Talk(messages=[]),
        clipped=body.max_tokens is None,
        toolbox=None,
        budget=None,
        format=None,
        params=params,
        salt=salt_of(body.cache_salt, body.extra_key),
        priority=body.priority or 0,
    )
    return to_merge(ask, body.edit, body.template or template)


def to_merge(ask: Ask, edit: Edit, template: str, *, greedy: bool = False) -> Ask:
    """The same with an edit in place of its conversation. Its answer is begun, so that only the file can follow."""
    talk = Talk(messages=conversation(edit, template), continues=True, answers=False, param="code")
    params = msgspec.structs.replace(ask.params, stop=(*ask.params.stop, CLOSING))
    if greedy:
        params = msgspec.structs.replace(params, temperature=0.0)
    return replace(ask, talk=talk, params=params, prediction=edit.code)


def edit_in(body: ChatRequest) -> Edit | None:
    """The edit that a chat asks for, where its one message is nothing else."""
    messages = body.messages or []
    if len(messages) != 1 or messages[0].get("role") != "user" or body.tools or body.asked() is not None:
        return None
    content = messages[0].get("content")
    return edit_of(content) if isinstance(content, str) else None


async def merged_by_lines(edit: Edit) -> str | None:
    """The merged file, where lines alone tell how to merge."""
    try:
        return await anyio.to_thread.run_sync(by_anchors, edit)
    except Unclear:
        return None


async def _verdict(edit: Edit, code: str, choice: Choice) -> Verdict:
    problems = await anyio.to_thread.run_sync(check, edit.code, edit.update, code)
    return Verdict(not problems and choice.finish == "stop", problems[:_MOST_TOLD])


class _Script(Script):
    """More of the file with each event; the last tells how it was merged, and whether it is as asked."""

    def __init__(self, edit: Edit, turn: Turn, reply: Applied) -> None:
        self._edit, self._turn, self._reply = edit, turn, reply
        self._text = Answered(edit.code)
        self._parts: list[str] = []
        self._chunk = Applied(id=reply.id, object=reply.object, created=reply.created, model=reply.model)

    def frames(self, news: list[News]) -> bytes:
        said = "".join(event.text for one in news for event in self._turn.events(one) if event.kind == "text")
        text = self._text.push(said)
        return self._frame(text) if text else b""

    def last(self) -> bytes:
        choice, end = self._turn.choices[0], self._text.end
        tail = self._frame(end) if end else b""
        problems = check(self._edit.code, self._edit.update, "".join(self._parts))
        self._reply.check = Verdict(not problems and choice.finish == "stop", problems[:_MOST_TOLD])
        self._reply.usage = usage_of(self._turn.choices)
        return tail + frame(self._reply) + DONE

    def _frame(self, text: str) -> bytes:
        self._parts.append(text)
        return frame(_with(self._chunk, delta=text))
