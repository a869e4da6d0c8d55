"""Lists of objects, a page at a time, and how OpenAI asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request

from sapwood.base.errors import RequestError

_MOST = 100


class Asked(NamedTuple):
    """The query of a list: behind which id it begins, how long it is at most, whether the oldest come first."""

    after: str | None
    limit: int
    ascending: bool


class Page(msgspec.Struct):
    data: Sequence[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"

    @classmethod
    def of(cls, objects: Sequence[dict[str, Any]], *, has_more: bool) -> Page:
        first, last = (objects[0]["id"], objects[-1]["id"]) if objects else (None, None)
        return cls(objects, first, last, has_more)


class Deleted(msgspec.Struct):
    id: str
    object: str
    deleted: bool = True


def page_of(request: Request, *, default_order: str, most: int = _MOST) -> Asked:
    """Raises RequestError naming the field."""
    order = request.query_params.get("order", default_order)
    if order not in ("asc", "desc"):
        raise RequestError(f"order must be asc or desc, got {order!r}.", param="order")
    limit = whole_number(request, "limit", default=20)
    if not 1 <= limit <= most:
        raise RequestError(f"limit must be in [1, {most}], got {limit}.", param="limit")
    return Asked(request.query_params.get("after"), limit, order == "asc")


def whole_number(request: Request, name: str, *, default: int) -> int:
    """A number in the query. Raises RequestError."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise RequestError(f"{name} must be a whole number, got {given!r}.", param=name)
    return int(given)
