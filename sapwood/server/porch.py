"""Before a house of models: what is asked of a model goes to its application, what is asked about all is answered here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, QueryParams
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sapwood.base.errors import ConfigError, RequestError
from sapwood.config import Config
from sapwood.config.house import seconds_of
from sapwood.server import anthropic, ollama
from sapwood.server.auth import Guard
from sapwood.server.body import json_response, unpacked
from sapwood.server.drain import Drain
from sapwood.server.errors import problem
from sapwood.server.gathered import gathered
from sapwood.server.house import House, Member
from sapwood.server.ollama.models import RunningModels, Tags, running, tags
from sapwood.server.openapi import Document, Placed, document
from sapwood.server.page import is_page
from sapwood.server.passage import passage
from sapwood.server.reference import POLICY, page
from sapwood.server.rooms import Room
from sapwood.server.routes import Described, Media, Told
from sapwood.server.sleeping import away
from sapwood.server.vllm import Sleeping

_ROOMS: Mapping[str, Room] = {"/api/": ollama.ROOM, "/v1/messages": anthropic.ROOM}
_SAFE = ("GET", "HEAD", "OPTIONS")
_OPENAI = Room(lambda front: [])


class Peek(msgspec.Struct):
    """What of a body says which model is meant, and how long it stays."""

    model: Any = None
    name: Any = None
    keep_alive: Any = None


class Card(msgspec.Struct, kw_only=True):
    """A model under one of its names. `max_model_len` is known once it has been loaded."""

    id: str
    created: int
    root: str
    state: str
    pinned: bool
    aliases: list[str]
    max_model_len: int | None = None
    object: str = "model"
    owned_by: str = "sapwood"


class Cards(msgspec.Struct):
    data: list[Card]
    object: str = "list"


class Named(msgspec.Struct):
    """Of `/models/load` and `/models/unload`."""

    model: str


class Moved(msgspec.Struct):
    model: str
    state: str


class HouseHealth(msgspec.Struct):
    status: str
    models: dict[str, str]


class _Named(msgspec.Struct):
    """Of routes that take no body."""

    model: str = ""


_TOLD: Mapping[str, Told] = {
    **dict.fromkeys(("/v1/models", "/models"), Told(gives=Cards)),
    "/health": Told(gives=HouseHealth),
    "/ready": Told(gives=HouseHealth, otherwise={503: HouseHealth}),
    "/metrics": Told(gives=Media("text/plain")),
    "/api/tags": Told(gives=Tags),
    "/api/ps": Told(gives=RunningModels),
    **dict.fromkeys(("/models/load", "/models/unload"), Told(body=Named, gives=Moved)),
    "/is_sleeping": Told(query=_Named, gives=Sleeping),
    "/openapi.json": Told(gives=Document),
    "/docs": Told(gives=Media("text/html")),
}
_WHICH = (
    " This server has several models, which all have the same routes: the body's `model` says which is meant, or `?model=`, or the header "
    "x-model; without any of them it is the first."
)


class Porch:
    """The application of a house; keeps what `serve` asks of one."""

    def __init__(self, house: House, config: Config, guard: Guard) -> None:
        self._house, self._config, self._guard = house, config, guard
        self.drain = Drain()
        self.state = SimpleNamespace(front=self)
        self._own: Mapping[tuple[str, str], Callable[[Scope, bytes], Coroutine[Any, Any, Response]]] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._ps,
            ("POST", "/models/load"): self._load,
            ("POST", "/models/unload"): self._unload,
            ("GET", "/is_sleeping"): self._is_sleeping,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/docs"): self._docs,
        }
        self._document: Document | None = None

    # -- what `serve` asks ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Nothing runs beside requests but what each model's own front begins."""

    def end_all(self, error: Exception) -> None:
        """End every request in flight with `error`."""
        for member in self._house.members:
            if member.front is not None:
                member.front.end_all(error)

    async def close(self) -> None:
        """End all engines."""
        await self._house.close()

    # -- requests -------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        note, path = passage(scope, send), scope["path"]
        room = next((room for prefix, room in _ROOMS.items() if path.startswith(prefix)), _OPENAI)
        note.envelope, note.overloaded = room.envelope, room.overloaded
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            with contextlib.ExitStack() as work:
                if scope["method"] not in _SAFE:
                    work.enter_context(self.drain.at_work())
                await self._pass(scope, receive, noting)
        except Exception as error:
            if begun:
                raise
            await note.response(problem(error))(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        note, headers, path, method = passage(scope, send), Headers(scope=scope), scope["path"], scope["method"]
        page = self._config.server.page and is_page(method, path, headers)
        note.account = self._guard.admit(headers, path, trusted=note.trusted, free=page)  # before anything is loaded
        body, again = (b"", receive) if method in _SAFE else await self._read(receive)
        if (own := self._own.get((method, path))) is not None:
            await (await own(scope, body))(scope, again, send)
            return
        if method == "GET" and path.startswith("/v1/models/"):
            card = self._card(path.removeprefix("/v1/models/"))
            await json_response(card)(scope, again, send)
            return
        member, peek = await self._meant(scope, headers, body)
        if peek.keep_alive is not None and path.startswith("/api/"):
            member.keep_alive = _stays(peek.keep_alive)
        async with self._house.using(member) as app:
            await app(scope, again, send)

    async def _read(self, receive: Receive) -> tuple[bytes, Receive]:
        """The body, as far as it is not too long, and what tells it again."""
        messages: list[Message] = []
        size, most = 0, self._config.server.max_body_bytes
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body") or size > most:
                break
        body = b"".join(message.get("body", b"") for message in messages)
        told = iter(messages)

        async def again() -> Message:
            return next(told, None) or await receive()

        return body, again

    async def _meant(self, scope: Scope, headers: Headers, body: bytes) -> tuple[Member, Peek]:
        """Which model: as the body says, or the query, or a header; the first that is there, or of all, where nothing does.

        What is wrong with a body is told by whoever reads it.
        """
        peek = Peek()
        with contextlib.suppress(msgspec.MsgspecError, RequestError):
            body = await unpacked(headers, body, self._config.server.max_body_bytes)
            if body[:1] in b"{ \n\r\t":
                peek = msgspec.json.decode(body, type=Peek)
        asked = peek.model or (peek.name if scope["path"].startswith("/api/") else None)
        asked = asked or QueryParams(scope["query_string"]).get("model") or headers.get("x-model")
        if isinstance(asked, str):
            return self._house.find(asked), peek
        there = next((one for one in self._house.members if one.awake), None) if not body else None
        return there or self._house.find(None), peek

    # -- about all ------------------------------------------------------------------------------------------------

    def _card(self, name: str) -> Card:
        member = self._house.find(name)
        resident, front = member.resident, member.front
        return Card(
            id=name,
            created=0 if front is None else front.started,
            root=resident.config.model.model,
            state=member.state,
            pinned=resident.pinned,
            aliases=[one for one in resident.names if one != name],
            max_model_len=None if front is None else front.facts.max_model_len,
        )

    async def _models(self, scope: Scope, body: bytes) -> Response:
        """All models under all of their names, those that are not loaded too."""
        names = [name for member in self._house.members for name in member.resident.names]
        return json_response(Cards([self._card(name) for name in names]))

    async def _health(self, scope: Scope, body: bytes) -> Response:
        """Well as long as it takes requests: an engine that ails is begun again when it is asked for."""
        status = "draining" if self.drain.begun else "ok"
        states = {member.name: str(member.state) for member in self._house.members}
        well = status == "ok" or scope["path"] == "/health"
        return json_response(HouseHealth(status, states), 200 if well else 503)

    async def _metrics(self, scope: Scope, body: bytes) -> Response:
        """Metrics of all models that are there, and of the house, as Prometheus reads them."""
        fronts = {one.name: one.front.metrics.exposition() for one in self._house.members if one.front is not None}
        return Response(gathered(fronts, self._house), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _tags(self, scope: Scope, body: bytes) -> Response:
        """All models, as Ollama lists them."""
        return json_response(tags([(one.resident.names, one.front) for one in self._house.members]))

    async def _ps(self, scope: Scope, body: bytes) -> Response:
        """Those that are loaded and awake, as Ollama lists them."""
        there = [(one, one.front) for one in self._house.members]
        return json_response(
            running([(one.name, front, _stamp(one.expires)) for one, front in there if front is not None and one.awake])
        )

    async def _is_sleeping(self, scope: Scope, body: bytes) -> Response:
        """Whether a model has given back its device's memory, or a part of it; one that is not loaded has none. Wakes nobody."""
        member, _ = await self._meant(scope, Headers(scope=scope), body)
        there = member.front if member.awake else None
        return json_response(Sleeping(there is None or bool(await away(there))))

    async def _openapi(self, scope: Scope, body: bytes) -> Response:
        """This document."""
        return json_response(await self._described(scope))

    async def _docs(self, scope: Scope, body: bytes) -> Response:
        """The reference of this server's API, a page made from its document."""
        told = msgspec.to_builtins(await self._described(scope))
        return HTMLResponse(page(told), headers={"content-security-policy": POLICY})

    async def _described(self, scope: Scope) -> Document:
        """What is served here: routes of models, which all have the same, and those that are about all in their place. A model has to have
        been there once for that."""
        if self._document is None:
            member, _ = await self._meant(scope, Headers(scope=scope), b"")
            async with self._house.using(member) as app:
                self._document = document(_placed(self._own, app.state.placed), guard=self._guard)
            self._document.info["description"] += _WHICH
        return self._document

    async def _load(self, scope: Scope, body: bytes) -> Response:
        """Have a model there."""
        member = self._moved(scope, body)
        async with self._house.using(member):
            return json_response(Moved(member.name, member.state))

    async def _unload(self, scope: Scope, body: bytes) -> Response:
        """Have a model go, as soon as it has nothing to do."""
        member = self._moved(scope, body)
        if member.resident.pinned:
            raise RequestError(f"{member.name!r} is pinned.", param="model", status=409, code="pinned")
        await self._house.unload(member)
        return json_response(Moved(member.name, member.state))

    def _moved(self, scope: Scope, body: bytes) -> Member:
        self._guard.check_operator(passage(scope, _nobody).account.tenant, scope["path"])
        try:
            return self._house.find(msgspec.json.decode(body, type=Named).model)
        except msgspec.MsgspecError as error:
            raise RequestError(f"The body is an object with the name of a model: {error}.", param="model") from None


def _placed(own: Mapping[tuple[str, str], Any], of_models: Placed) -> Placed:
    """Routes of models, and those of the house in the place of such as have the same path and method."""
    made: list[tuple[Route, Room]] = []
    for (method, path), handler in own.items():
        room = ollama.ROOM if path.startswith("/api/") else Room(lambda front: [], admin=path.startswith("/models/"))
        name = f"house_{handler.__name__.strip('_')}"
        made.append((Described(path, handler, methods=[method], name=name, told=_TOLD[path]), room))
    return [*made, *((route, room) for route, room in of_models if not _taken(route, own))]


def _taken(route: Route, own: Mapping[tuple[str, str], Any]) -> bool:
    return any((method, route.path) in own for method in route.methods or ())


async def _nobody(message: Message) -> None:
    raise AssertionError("nothing is sent here")


def _stays(value: Any) -> float | None:
    """Ollama's keep_alive. Raises RequestError."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigError(f"keep_alive takes a time, got {value!r}.")
        return seconds_of(value, "keep_alive")
    except ConfigError as error:
        raise RequestError(str(error), param="keep_alive") from None


def _stamp(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
