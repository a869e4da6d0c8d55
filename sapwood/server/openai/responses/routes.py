"""The routes of responses: made, streamed, found again, cancelled, deleted; their input; tokens counted."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HTTPResponse
from starlette.responses import StreamingResponse

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response, json_text
from sapwood.server.errors import ErrorEnvelope, Problem
from sapwood.server.fields import Count
from sapwood.server.front import Front
from sapwood.server.generation import News, complete
from sapwood.server.openai.lists import Deleted, ListQuery, Page, page_of
from sapwood.server.openai.responses import records
from sapwood.server.openai.responses.exchange import Exchange, count, exchange_of
from sapwood.server.openai.responses.live import Live, Lives
from sapwood.server.openai.responses.objects import Response
from sapwood.server.openai.responses.protocol import ResponseRequest
from sapwood.server.passage import caller
from sapwood.server.refusals import RESPONSES
from sapwood.server.routes import Described, Streamed, plain, post, query_of
from sapwood.server.sse import EVENTS, EventStream, Script

_NO_CACHE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_PATH = "/v1/responses"
_ONE = f"{_PATH}/{{id}}"


class InputTokens(msgspec.Struct):
    input_tokens: int
    object: str = "response.input_tokens"


class Events(Script):
    """The stream of a response that is made while its client waits."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def frames(self, news: list[News]) -> bytes:
        events = self._exchange.push(news)
        if self._exchange.writer.over:  # now: who reads that it is complete may go on from it
            self._exchange.keep()
        return b"".join(events)

    def last(self) -> bytes:
        return b""

    def failed(self, error: bytes) -> bytes:
        told = msgspec.json.decode(error, type=ErrorEnvelope).error
        self._exchange.writer.fail(Problem(500, told.type, told.message, told.param, told.code))
        self._exchange.keep()
        return b"".join(self._exchange.writer.taken())


class RetrieveQuery(msgspec.Struct, kw_only=True):
    stream: bool = False
    starting_after: Count | None = None


class Event(msgspec.Struct):
    """What all events of a stream have; the rest is as the type says."""

    type: str
    sequence_number: int


def routes(front: Front) -> list[Described]:
    lives = Lives()
    front.at_close(lives.close)
    return [*_asking(front, lives), *_kept(front, lives), *_inputs(front)]


def _asking(front: Front, lives: Lives) -> list[Described]:
    async def create_response(request: Request, body: ResponseRequest) -> HTTPResponse:
        """Answer a conversation with items: thoughts, messages and calls of tools.

        It is kept unless store is false, can be gone on from (previous_response_id), and may run in the background.
        """
        body.check(front)
        exchange = await exchange_of(front, caller(request), body)
        if body.background:
            live = lives.begin(exchange)
            return _stream(live, 0) if body.stream else json_response(exchange.writer.response)
        if body.stream:
            return EventStream(front, exchange.turn.choices, Events(exchange))
        await front.attended(request.receive, complete(front, exchange.turn.choices))
        return json_response(exchange.whole())

    events = Streamed(Event)
    return [post(front, _PATH, ResponseRequest, create_response, refused=RESPONSES, gives=Response, streams=events)]


def _kept(front: Front, lives: Lives) -> list[Described]:
    async def response(request: Request) -> HTTPResponse:
        """A response that was kept. The events of one in the background can be had again, from any of them on."""
        owner, id, query = caller(request), request.path_params["id"], query_of(request, RetrieveQuery)
        at = 0 if query.starting_after is None else query.starting_after + 1
        if (live := lives.find(owner, id)) is not None:
            return _stream(live, at) if query.stream else json_response(live.exchange.writer.response)
        body, kept, record = await records.find(front.store, owner, id)
        if query.stream:
            return _replay(record, at)
        if kept.status in records.RUNNING:
            return json_text(records.lost(body))
        return json_text(body)

    async def cancel_response(request: Request) -> HTTPResponse:
        """End a response that runs in the background."""
        owner, id = caller(request), request.path_params["id"]
        if (live := lives.find(owner, id)) is not None:
            await live.cancel()
            return json_response(live.exchange.writer.response)
        body, kept, _ = await records.find(front.store, owner, id)
        if not kept.background:
            raise RequestError("Only responses that were made with background: true can be cancelled.")
        return json_text(body)

    async def delete_response(request: Request) -> HTTPResponse:
        """Forget a response."""
        owner, id = caller(request), request.path_params["id"]
        if (live := lives.find(owner, id)) is not None:
            await live.cancel()
        if not await front.store.run(lambda books: books.delete(records.KIND, owner, id)):
            raise records.unknown(id)
        return json_response(Deleted(id, "response"))

    return [
        plain(_ONE, response, query=RetrieveQuery, gives=Response, streams=Streamed(Event)),
        plain(_ONE, delete_response, methods=["DELETE"], gives=Deleted),
        plain(f"{_ONE}/cancel", cancel_response, methods=["POST"], gives=Response),
    ]


def _inputs(front: Front) -> list[Described]:
    async def response_input_items(request: Request) -> HTTPResponse:
        """What a response answers: its input, behind what it goes on from."""
        owner, id, query = caller(request), request.path_params["id"], query_of(request, ListQuery)
        _, kept, record = await records.find(front.store, owner, id)
        items = [*await records.context(front.store, owner, kept.previous_response_id), *record.input]
        return json_response(page_of(query.window(items), query.limit))

    async def count_input_tokens(request: Request, body: ResponseRequest) -> HTTPResponse:
        """How many tokens the prompt of a response would have."""
        body.check(front)
        return json_response(InputTokens(await count(front, caller(request), body)))

    counted = f"{_PATH}/input_tokens"
    return [
        plain(f"{_ONE}/input_items", response_input_items, query=ListQuery, gives=Page[dict[str, Any]]),
        post(front, counted, ResponseRequest, count_input_tokens, refused=RESPONSES, gives=InputTokens),
    ]


def _stream(live: Live, at: int) -> HTTPResponse:
    return StreamingResponse(live.follow(at), media_type=EVENTS, headers=_NO_CACHE)


def _replay(record: records.Record, at: int) -> HTTPResponse:
    if (events := record.events(at)) is None:
        raise RequestError(
            "Only responses that were made with background: true can be streamed again; leave stream out.",
            param="stream",
        )
    return HTTPResponse(events, media_type=EVENTS, headers=_NO_CACHE)
