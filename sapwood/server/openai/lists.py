"""Lists of objects, a page at a time, and how OpenAI asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from sapwood.base.errors import RequestError
from sapwood.server.store import Books

T = TypeVar("T")

Limit = Annotated[int, Meta(ge=1, le=100)]


class ListQuery(msgspec.Struct, kw_only=True):
    """Behind which id the page begins, how long it is at most, and whether the oldest come first."""

    after: str | None = None
    limit: Limit = 20
    order: Literal["asc", "desc"] = "desc"

    def window(self, objects: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Of all objects, the oldest first, those from which the page is taken. Raises RequestError."""
        if self.order == "desc":
            objects = objects[::-1]
        if self.after is None:
            return objects
        for index, one in enumerate(objects):
            if one["id"] == self.after:
                return objects[index + 1 :]
        raise RequestError(f"after: there is nothing with the id {self.after!r}.", param="after")


class Page(msgspec.Struct, Generic[T]):
    data: Sequence[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct):
    id: str
    object: str
    deleted: bool = True


def page_of(objects: Sequence[dict[str, Any]], limit: int) -> Page[dict[str, Any]]:
    """The first `limit` of them."""
    shown = objects[:limit]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return Page(shown, first, last, len(objects) > limit)


def page_in(
    books: Books, kind: str, owner: str, query: ListQuery, where: Mapping[tuple[str, ...], str]
) -> Page[dict[str, Any]]:
    """What a query asks for, of the objects that are kept. Raises RequestError."""
    newest, most = query.order == "desc", query.limit + 1
    bodies = books.page(kind, owner, limit=most, after=query.after, newest_first=newest, where=where)
    return page_of([msgspec.json.decode(body) for body in bodies], query.limit)
