"""The routes of responses: made, streamed, found again, cancelled, deleted; their input; tokens counted."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HTTPResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.errors import ErrorEnvelope, Problem
from sapwood.server.front import Front
from sapwood.server.generation import News, complete
from sapwood.server.openai.lists import Deleted, Page, page_of, whole_number
from sapwood.server.openai.replies import post
from sapwood.server.openai.responses import records
from sapwood.server.openai.responses.exchange import Exchange, count, exchange_of
from sapwood.server.openai.responses.items import Item
from sapwood.server.openai.responses.live import Live, Lives
from sapwood.server.openai.responses.protocol import ResponseRequest
from sapwood.server.passage import caller
from sapwood.server.refusals import RESPONSES
from sapwood.server.sse import EVENTS, EventStream, Script

_JSON = {"content-type": "application/json"}
_NO_CACHE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_RUNNING = ("queued", "in_progress")


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


def routes(front: Front) -> list[Route]:
    lives = Lives()
    front.at_close(lives.close)

    async def create(request: Request, body: ResponseRequest) -> HTTPResponse:
        exchange = await exchange_of(front, caller(request), body)
        if body.background:
            live = lives.begin(exchange)
            return _stream(live, 0) if body.stream else json_response(exchange.writer.response)
        if body.stream:
            return EventStream(front, exchange.turn.choices, Events(exchange))
        await front.attended(request.receive, complete(front, exchange.turn.choices))
        return json_response(exchange.whole())

    async def retrieve(request: Request) -> HTTPResponse:
        owner, id = caller(request), request.path_params["id"]
        streamed = request.query_params.get("stream") == "true"
        at = whole_number(request, "starting_after", default=-1) + 1 if streamed else 0
        if (live := lives.find(owner, id)) is not None:
            return _stream(live, at) if streamed else json_response(live.exchange.writer.response)
        body, kept, record = await records.find(front.store, owner, id)
        if streamed:
            return _replay(record, at)
        if kept.status in _RUNNING:
            return HTTPResponse(records.lost(body), headers=_JSON)
        return HTTPResponse(body, headers=_JSON)

    async def cancel(request: Request) -> HTTPResponse:
        owner, id = caller(request), request.path_params["id"]
        if (live := lives.find(owner, id)) is not None:
            await live.cancel()
            return json_response(live.exchange.writer.response)
        body, kept, _ = await records.find(front.store, owner, id)
        if not kept.background:
            raise RequestError("Only responses that were made with background: true can be cancelled.")
        return HTTPResponse(body, headers=_JSON)

    async def delete(request: Request) -> HTTPResponse:
        owner, id = caller(request), request.path_params["id"]
        if (live := lives.find(owner, id)) is not None:
            await live.cancel()
        if not await front.store.run(lambda books: books.delete(records.KIND, owner, id)):
            raise records.unknown(id)
        return json_response(Deleted(id, "response"))

    async def input_items(request: Request) -> HTTPResponse:
        owner, id = caller(request), request.path_params["id"]
        _, kept, record = await records.find(front.store, owner, id)
        items = [*await records.context(front.store, owner, kept.previous_response_id), *record.input]
        return json_response(_page(request, items))

    async def input_tokens(request: Request, body: ResponseRequest) -> HTTPResponse:
        return json_response(InputTokens(await count(front, caller(request), body)))

    return [
        post(front, "/v1/responses", ResponseRequest, create, refused=RESPONSES),
        post(front, "/v1/responses/input_tokens", ResponseRequest, input_tokens, refused=RESPONSES),
        Route("/v1/responses/{id}", retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", input_items, methods=["GET"]),
    ]


def _stream(live: Live, at: int) -> HTTPResponse:
    return StreamingResponse(live.follow(at), media_type=EVENTS, headers=_NO_CACHE)


def _replay(record: records.Record, at: int) -> HTTPResponse:
    if record.events is None:
        raise RequestError(
            "Only responses that were made with background: true can be streamed again; leave stream out.",
            param="stream",
        )
    events = record.events.split("\n\n")[at:]
    return HTTPResponse("\n\n".join(events), media_type=EVENTS, headers=_NO_CACHE)


def _page(request: Request, items: list[Item]) -> Page:
    page = page_of(request, default_order="desc")
    if not page.ascending:
        items = items[::-1]
    if page.after is not None:
        found = [index for index, item in enumerate(items) if item["id"] == page.after]
        if not found:
            raise RequestError(f"after: there is no item {page.after!r}.", param="after")
        items = items[found[0] + 1 :]
    return Page.of(items[: page.limit], has_more=len(items) > page.limit)
