"""/openapi.json: what is served, said by the routes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.convertors import IntegerConvertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sapwood import __version__
from sapwood.server.auth import Guard
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.reference import POLICY, page
from sapwood.server.rooms import Room
from sapwood.server.routes import Described, Media, Told, plain

Placed = Sequence[tuple[Route, Room]]

_ERRORS = {
    400: "Something in the request is wrong; the message names the field and says what would be right.",
    401: "The API key is missing or wrong.",
    403: "Only operators may do this: with the admin key, or over the admin socket.",
    404: "There is no such thing: the model, or what the path names.",
    408: "The request did not arrive in time.",
    413: "The body is larger than the server's limit.",
    415: "The body's content type, or its encoding, is not supported.",
    429: "Too many requests; Retry-After says when to try again.",
    500: "Something went wrong inside; the log has the details.",
    501: "There is no such function here.",
    503: "The server cannot take the request now; try again later.",
    504: "The request's time is over.",
    529: "There are too many requests; Retry-After says when to try again.",
}
_OF_BODIES = {400, 408, 413, 415}
_ABOUT = (
    "Fields of bodies that are not named are ignored, unless they would change the result: those are refused by name. "
    "Bodies may be compressed (Content-Encoding: gzip or deflate). Every answer has the header x-request-id."
)


class Document(msgspec.Struct):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, dict[str, Any]]
    components: dict[str, Any]


def routes(front: Front, placed: Placed) -> list[tuple[Route, Room]]:
    """`placed` and, behind them, the routes of the document, which are in it."""
    whole: list[tuple[Route, Room]] = []

    @cache
    def made() -> Document:
        return document(whole, guard=front.guard)

    async def openapi(request: Request) -> Response:
        """This document."""
        return json_response(made())

    async def docs(request: Request) -> Response:
        """The reference of this server's API, a page made from its document."""
        return HTMLResponse(page(msgspec.to_builtins(made())), headers={"content-security-policy": POLICY})

    room = Room(
        lambda _: [plain("/openapi.json", openapi, gives=Document), plain("/docs", docs, gives=Media("text/html"))]
    )
    whole += [*placed, *((route, room) for route in room.routes(front))]
    return whole


def document(placed: Placed, *, guard: Guard) -> Document:
    """What these routes serve, and which keys `guard` wants."""
    types = _Types(placed)
    paths: dict[str, dict[str, Any]] = {}
    for route, room in placed:
        operations = paths.setdefault(route.path_format, {})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operations[method.lower()] = _operation(types, route, room, method, guard)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return Document(
        "3.1.0",
        {"title": "Sapwood", "version": __version__, "description": _ABOUT},
        paths,
        {"schemas": types.components, "responses": types.errors, "securitySchemes": schemes},
    )


class _Types:
    """The schemas of all types that routes name, and the answers that are errors, by the struct of their room."""

    def __init__(self, placed: Placed) -> None:
        self._types: list[Any] = [*dict.fromkeys(room.error for _, room in placed)]
        for route, _ in placed:
            self._types += _types_of(_told(route))
        schemas, self.components = msgspec.json.schema_components(
            self._types, ref_template="#/components/schemas/{name}"
        )
        self._schemas = list(schemas)
        self.errors = {
            f"{error.__name__}{status}": {
                "description": why,
                "content": {"application/json": {"schema": self.schema(error)}},
            }
            for error in dict.fromkeys(room.error for _, room in placed)
            for status, why in _ERRORS.items()
        }

    def schema(self, type: Any) -> dict[str, Any]:
        return self._schemas[self._types.index(type)]

    def content(self, type: Any) -> dict[str, Any]:
        """The `content` of a body."""
        if isinstance(type, Media):
            return {type.kind: {"schema": {"type": "string"}}}
        return {"application/json": {"schema": self.schema(type)}}


def _types_of(told: Told) -> Iterable[Any]:
    streams = () if told.streams is None else (told.streams.event,)
    named = (told.body, told.gives, *told.otherwise.values(), *streams)
    return (type for type in named if type is not None and not isinstance(type, Media))


def _told(route: Route) -> Told:
    return route.told if isinstance(route, Described) else Told()


def _operation(types: _Types, route: Route, room: Room, method: str, guard: Guard) -> dict[str, Any]:
    told = _told(route)
    about = inspect.cleandoc(route.doc if isinstance(route, Described) else route.endpoint.__doc__ or "")
    summary, _, rest = about.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{route.path_format}".replace("/", "_").replace("{", "").replace("}", ""),
        "summary": " ".join(summary.split()),
    }
    if rest:
        operation["description"] = rest
    if parameters := [*_in_path(route), *_in_query(told.query)]:
        operation["parameters"] = parameters
    if told.body is not None:
        operation["requestBody"] = {"required": not told.optional, "content": types.content(told.body)}
    if told.refused:
        operation["x-refused-fields"] = sorted(told.refused)
    operation["responses"] = _responses(types, told, room, bool(parameters))
    if room.admin:
        operation["x-admin"] = True
    if room.admin or (guard.keyed and not guard.open(route.path)):
        operation["security"] = [{"bearer": []}, {"key": []}]
    else:
        operation["security"] = []
    return operation


def _responses(types: _Types, told: Told, room: Room, parametrised: bool) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "What was asked for."}
    content = {} if told.gives is None else types.content(told.gives)
    if told.streams is not None:
        content[told.streams.kind] = {"schema": _stream(types, told, room)}
    if content:
        good["content"] = content
    responses: dict[str, Any] = {"200": good}
    for status, type in told.otherwise.items():
        responses[str(status)] = {"description": _ERRORS[status], "content": types.content(type)}
    refused = _OF_BODIES if told.body is not None else {400} if parametrised else set()
    told_otherwise = {501, 529} - {room.overloaded}
    for status in sorted(_ERRORS.keys() - _OF_BODIES - told_otherwise | refused):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{room.error.__name__}{status}"})
    return responses


def _stream(types: _Types, told: Told, room: Room) -> Mapping[str, Any]:
    """What a stream is made of: events whose data is JSON, but for the last of some dialects, or lines of it. The last may be an
    error."""
    assert told.streams is not None
    inner = {"anyOf": [types.schema(told.streams.event), types.schema(room.error)]}
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": inner}
    if told.streams.kind != "text/event-stream":
        return data | {"description": "Where the body asks for a stream: lines of"}
    about = "Where the body asks for a stream: events, whose data is"
    data = {"anyOf": [data, {"const": "[DONE]"}]}
    return {"type": "object", "description": about, "properties": {"data": data}, "required": ["data"]}


def _in_path(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if isinstance(convertor, IntegerConvertor) else "string"},
        }
        for name, convertor in route.param_convertors.items()
    ]


def _in_query(query: type | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    _, components = msgspec.json.schema_components([query])
    schema = components[query.__name__]
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
