"""The routes of batches."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.fields import Count
from sapwood.server.front import Front
from sapwood.server.openai import chat, completions, responses
from sapwood.server.openai.batches import ledger
from sapwood.server.openai.batches.inside import Inside
from sapwood.server.openai.batches.ledger import Batch, Job
from sapwood.server.openai.batches.lines import ENDPOINTS
from sapwood.server.openai.batches.runner import Runner
from sapwood.server.openai.lists import Limit, Page, page_of
from sapwood.server.openai.metadata import Metadata
from sapwood.server.passage import caller
from sapwood.server.routes import Described, plain, post, query_of
from sapwood.server.store import Books
from sapwood.server.texts import embeddings

_WINDOW = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class OutputExpiresAfter(msgspec.Struct, kw_only=True):
    seconds: Count
    anchor: Literal["created_at"] = "created_at"


class BatchRequest(msgspec.Struct, kw_only=True):
    """`completion_window` is OpenAI's 24h, or another time such as 90s, 30m or 7d."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchesQuery(msgspec.Struct, kw_only=True):
    after: str | None = None
    limit: Limit = 20


def answering(front: Front) -> Sequence[Route]:
    """The routes that lines of a batch may ask."""
    return [*completions.routes(front), *chat.routes(front), *responses.routes(front), *embeddings.routes(front)]


def routes(front: Front) -> list[Described]:
    store = front.store
    runner = Runner(front, Inside(front, answering(front)))
    front.at_open(runner.resume)
    front.at_close(runner.close)

    async def create_batch(request: Request, body: BatchRequest) -> Response:
        """Answer all requests of a file, after those of clients that wait, and across restarts of the server."""
        owner, batch = caller(request), _batch(front, body)
        seconds = None if body.output_expires_after is None else body.output_expires_after.seconds
        await store.run(lambda books: ledger.create(books, owner, batch, seconds))
        reply = json_response(batch)
        runner.begin(Job(owner, batch, seconds))
        return reply

    async def batches(request: Request) -> Response:
        """The batches that are kept, the newest first."""
        owner, query = caller(request), query_of(request, BatchesQuery)

        def page(books: Books) -> list[Batch]:
            bodies = books.page(ledger.KIND, owner, limit=query.limit + 1, after=query.after)
            return [ledger.told(books, body) for body in bodies]

        found = msgspec.to_builtins(await store.run(page))
        return json_response(page_of(found, query.limit))

    async def batch(request: Request) -> Response:
        """A batch: how far it is, and the files of its results."""
        owner, id = caller(request), request.path_params["id"]
        return json_response(await store.run(lambda books: ledger.find(books, owner, id)))

    async def cancel_batch(request: Request) -> Response:
        """End a batch; the results that there are become its files."""
        return json_response(await runner.cancel(caller(request), request.path_params["id"]))

    return [
        post(front, "/v1/batches", BatchRequest, create_batch, gives=Batch),
        plain("/v1/batches", batches, query=BatchesQuery, gives=Page[dict[str, Any]]),
        plain("/v1/batches/{id}", batch, gives=Batch),
        plain("/v1/batches/{id}/cancel", cancel_batch, methods=["POST"], gives=Batch),
    ]


def _batch(front: Front, body: BatchRequest) -> Batch:
    if body.endpoint not in ENDPOINTS:
        raise RequestError(f"endpoint must be one of {', '.join(ENDPOINTS)}, got {body.endpoint!r}.", param="endpoint")
    window = _WINDOW.fullmatch(body.completion_window)
    if window is None:
        raise RequestError(
            f"completion_window must be a time such as 24h, 30m or 7d, got {body.completion_window!r}.",
            param="completion_window",
        )
    now = int(time.time())
    return Batch(
        id=ledger.new_id(),
        endpoint=body.endpoint,
        model=front.model_name,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + int(window[1]) * _SECONDS[window[2]],
        metadata=body.metadata,
    )
