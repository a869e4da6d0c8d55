"""Routes that say what they take and give, so that nothing is served that is not described.

A handler's docstring is what the document of the API says of it: its first line is the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.server.body import Body, field_error
from sapwood.server.front import Front
from sapwood.server.refusals import Table

T = TypeVar("T")

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Media(NamedTuple):
    """A body that is no JSON, by its content type."""

    kind: str


class Streamed(NamedTuple):
    """A stream: the type of its events, and its content type."""

    event: Any
    kind: str = "text/event-stream"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a route takes and gives. Types are those of msgspec.

    Attributes:
        body: The type of its body, or a Media; None without one.
        optional: The body may be left out.
        refused: Fields of the body that are refused by name.
        query: A struct of what its query may hold.
        gives: The type of its answer, or a Media; None where that is empty.
        streams: What it gives where it is asked for a stream.
        otherwise: Answers that have the type of no error and another status, by that.
    """

    body: Any = None
    optional: bool = False
    refused: Table = field(default_factory=dict)
    query: type | None = None
    gives: Any = None
    streams: Streamed | None = None
    otherwise: Mapping[int, Any] = field(default_factory=dict)


class Described(Route):
    """A route with what is told of it."""

    def __init__(self, path: str, endpoint: Endpoint, *, methods: Sequence[str], name: str, told: Told) -> None:
        super().__init__(path, endpoint, methods=list(methods), name=name)
        self.told = told
        self.doc = endpoint.__doc__ or ""


def post(
    front: Front,
    path: str,
    body: type[T],
    answer: Callable[[Request, T], Coroutine[Any, Any, Response]],
    *,
    gives: Any,
    streams: Streamed | None = None,
    refused: Table | None = None,
    query: type | None = None,
    optional: bool = False,
    methods: Sequence[str] = ("POST",),
) -> Described:
    """A route that reads a JSON body of a type, which `answer` gets. With `optional` no body is an empty object."""
    read = Body(body, front, refused=refused, optional=optional)

    async def endpoint(request: Request) -> Response:
        return await answer(request, await read(request))

    endpoint.__doc__ = answer.__doc__
    told = Told(body=body, optional=optional, refused=refused or {}, query=query, gives=gives, streams=streams)
    return Described(path, endpoint, methods=methods, name=answer.__name__, told=told)


def plain(path: str, endpoint: Endpoint, *, methods: Sequence[str] = ("GET",), **told: Any) -> Described:
    """A route that reads no JSON; `told` are fields of `Told`."""
    return Described(path, endpoint, methods=methods, name=endpoint.__name__, told=Told(**told))


def query_of(request: Request, type: type[T]) -> T:
    """A request's query as a struct. Raises RequestError for a value of a wrong type, naming the field."""
    return converted(dict(request.query_params), type)


def converted(query: Mapping[str, Any], type: type[T]) -> T:
    """The same of a query that has been taken apart."""
    try:
        return msgspec.convert(query, type, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(error) from None
