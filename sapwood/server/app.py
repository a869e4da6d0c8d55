"""The application: its routes, and the gate that every request passes."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sapwood.base.errors import SapwoodError
from sapwood.config import Config
from sapwood.engine.client import EngineClient
from sapwood.hub.about import About
from sapwood.images.gallery import TEXT_ONLY, Cabinet
from sapwood.observe.exchange import Exchange
from sapwood.observe.metrics import Metrics
from sapwood.observe.observer import Observer, Traces
from sapwood.server import admin, anthropic, experts, live, ollama, openapi, texts, vllm
from sapwood.server.auth import Guard
from sapwood.server.errors import ClientGone, named, problem
from sapwood.server.explained import ASKED as EXPLAIN
from sapwood.server.front import Front
from sapwood.server.openai import apply, audio, batches, chat, completions, files, models, responses, stored
from sapwood.server.page import is_page, opened
from sapwood.server.passage import passage
from sapwood.server.rooms import Room
from sapwood.server.sglang import control, generate, state, weights
from sapwood.text import TextModel

ROOMS: Sequence[Room] = (
    Room(completions.routes),
    Room(chat.routes),
    Room(stored.routes),
    Room(responses.routes),
    Room(files.routes),
    Room(batches.routes),
    Room(apply.routes),
    Room(audio.routes),
    texts.ROOM,
    Room(models.routes),
    anthropic.ROOM,
    ollama.ROOM,
    Room(generate.routes),
    Room(state.routes),
    Room(control.routes, admin=True),
    Room(weights.looks),
    Room(weights.routes, admin=True),
    Room(vllm.routes),
    Room(vllm.control, admin=True),
    Room(vllm.sleeping, admin=True),
    Room(admin.routes),
    Room(live.routes),
    Room(experts.routes, admin=True),
)
"""What there is over HTTP: a dialect is one more of these."""

_SAFE = ("GET", "HEAD", "OPTIONS")  # methods that begin no work
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    engine: EngineClient,
    text: TextModel,
    config: Config,
    model_names: str | Sequence[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    registry: CollectorRegistry | None = None,
    traces: Traces | None = None,
    about: About | None = None,
    gallery: Cabinet | str = TEXT_ONLY,
    guard: Guard | None = None,
    rooms: Sequence[Room] = ROOMS,
) -> Starlette:
    """The HTTP server of one engine, whose model has one name or several.

    `defaults` is the model's generation_config: its temperature, top_k, top_p, min_p and repetition_penalty serve requests that bring none.
    `registry` takes the metrics; one of its own by default. `traces` are told of every request, clients of what is said `about` the model.
    `gallery` prepares images, or says why there is none; a `guard` may be shared. Raises ConfigError for defaults that cannot be used.
    """
    names = [model_names] if isinstance(model_names, str) else model_names
    metrics = Metrics(registry or CollectorRegistry(), model=names[0], engine=engine, peer=config.server.metrics_compat)
    observer = Observer(metrics, log_requests=config.server.log_requests, traces=traces)
    front = Front(
        engine,
        text,
        config,
        names,
        observer=observer,
        defaults=defaults or {},
        about=about or About(),
        gallery=_scaling(gallery, engine),
        guard=guard,
    )
    placed: list[tuple[Route, Room]] = [(route, room) for room in rooms for route in room.placed(front)]
    placed.append((admin.index(front, [route for route, _ in placed]), Room(admin.routes)))
    placed = openapi.routes(front, opened(placed) if config.server.page else placed)
    server = config.server
    middleware = [Middleware(Gate, front=front, known=Known(placed))]
    if server.cors_origins:
        origins = [origin.strip() for origin in server.cors_origins.split(",")]
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)
    app = _Application(
        routes=[route for route, _ in placed],
        middleware=middleware,
        exception_handlers={SapwoodError: handle, HTTPException: handle, ClientGone: handle},
    )
    app.state.front, app.state.placed = front, placed
    return app


def _scaling(gallery: Cabinet | str, engine: EngineClient) -> Cabinet | str:
    """Images are scaled down as the engine wants it; none are prepared for one that has left out its tower, as some devices want it."""
    if not isinstance(gallery, Cabinet):
        return gallery
    if gallery.kind not in engine.facts.media:
        return TEXT_ONLY
    gallery.bound(engine.facts.max_pixels, engine.facts.device)
    return gallery


class _Application(Starlette):
    """Notes the server's own `send`, for those who send often."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passage(scope, send)
        await super().__call__(scope, receive, send)


async def handle(request: Request, error: Exception) -> Response:
    """The exception handler of every error that is raised on purpose."""
    if isinstance(error, HTTPException):
        error = named(error, request.method, request.url.path)
    return passage(request.scope, request._send).response(problem(error))


class Known:
    """The paths that are served: how each is counted, and the room that words its errors."""

    def __init__(self, placed: Sequence[tuple[Route, Room]]) -> None:
        self._paths = {route.path: room for route, room in placed if not route.param_convertors}
        self._patterns = [
            (route.path_regex, route.path_format, room) for route, room in placed if route.param_convertors
        ]
        self._other = Room(lambda front: [])
        self._guests = {room.known_by: room for _, room in placed if room.known_by}

    def __call__(self, path: str, headers: Headers) -> tuple[str, Room]:
        """The path's name, the same whatever stands for a parameter, or "other"; and the room."""
        name, room = path, self._paths.get(path)
        if room is None:
            found = (known for known in self._patterns if known[0].match(path))
            _, name, room = next(found, (None, "other", self._other))
        return name, next((guest for header, guest in self._guests.items() if header in headers), room)


class Gate:
    """Around every request: its id, the key, the count, the log line, and an answer for errors nobody expected."""

    def __init__(self, app: ASGIApp, *, front: Front, known: Known) -> None:
        self._app = app
        self._front = front
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        note, given = passage(scope, send), headers.get("x-request-id", "")
        note.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        endpoint, room = self._known(path, headers)
        note.explains = headers.get(EXPLAIN, "") not in ("", "0")
        note.envelope, note.overloaded = room.envelope, room.overloaded
        stamps = [(name.encode(), note.request_id.encode()) for name in room.ids]
        trace = {name: value for name in ("traceparent", "tracestate") if (value := headers.get(name))}
        exchange = Exchange(note.request_id, scope["method"], path, endpoint, trace)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *stamps, *note.account.headers(), *note.told]
            await send(message)

        with self._front.observer.watching(exchange):
            await self._pass(scope, receive, stamped, headers, exchange)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: Headers, exchange: Exchange) -> None:
        front, work, note = self._front, contextlib.ExitStack(), passage(scope, send)
        try:
            if exchange.method not in _SAFE:
                work.enter_context(front.drain.at_work())
                await front.turns()
            page = front.config.server.page and is_page(exchange.method, exchange.path, headers)
            note.account = front.guard.admit(headers, exchange.path, trusted=note.trusted, free=page)
            exchange.key = note.caller
            if exchange.method == "POST":
                note.account.count()
            front.deadlines.begin(headers)
            work.enter_context(front.serving(note))
            await self._app(scope, receive, send)
        except Exception as error:
            told = problem(error)
            if exchange.begun:
                raise  # the response has begun; closing the connection is all that is left
            await note.response(told)(scope, receive, send)
        finally:
            work.close()
