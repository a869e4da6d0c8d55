"""/v1/files: what batches read and write."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response, json_text, read_body
from sapwood.server.front import Front
from sapwood.server.multipart import Part, parts_of
from sapwood.server.openai.lists import Deleted, ListQuery, Page, page_in
from sapwood.server.passage import caller
from sapwood.server.routes import Described, Media, plain, query_of
from sapwood.server.store import Books, Thing

KIND = "file"

_LIFE = (3600, 30 * 86400)  # seconds that a file may ask for, as OpenAI has it


class File(msgspec.Struct, kw_only=True):
    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"


class FilesQuery(ListQuery, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    purpose: Literal["batch", "batch_output"] | None = None


_PATH, _ONE = "/v1/files", "/v1/files/{id}"


def routes(front: Front) -> list[Described]:
    return [*_changes(front), *_looks(front)]


def _changes(front: Front) -> list[Described]:
    store = front.store

    async def create_file(request: Request) -> Response:
        """Upload a file of requests, a JSON object on each line: fields `file` and `purpose`, which is batch."""
        body = await read_body(request, front.config.server.max_body_bytes)
        file, content = _uploaded(parts_of(request.headers.get("content-type", ""), body))
        if len(content) > front.config.server.state_bytes:
            most = front.config.server.state_bytes
            raise RequestError(f"The file is larger than all that is kept: {most} bytes (--state-bytes).", status=413)
        owner = caller(request)
        await store.run(lambda books: put(books, owner, file, content))
        return json_response(file)

    async def delete_file(request: Request) -> Response:
        """Forget a file. One that a batch still reads stays."""
        owner, id = caller(request), request.path_params["id"]
        await store.run(lambda books: _delete(books, owner, id))
        return json_response(Deleted(id, "file"))

    upload = Media("multipart/form-data")
    return [
        plain(_PATH, create_file, methods=["POST"], body=upload, gives=File),
        plain(_ONE, delete_file, methods=["DELETE"], gives=Deleted),
    ]


def _looks(front: Front) -> list[Described]:
    store = front.store

    async def files(request: Request) -> Response:
        """The files that are kept."""
        owner, query = caller(request), query_of(request, FilesQuery)
        where: dict[tuple[str, ...], str] = {} if query.purpose is None else {("purpose",): query.purpose}

        def page(books: Books) -> Page[dict[str, Any]]:
            _expire(books)
            return page_in(books, KIND, owner, query, where)

        return json_response(await store.run(page))

    async def file(request: Request) -> Response:
        """What is known of a file."""
        owner, id = caller(request), request.path_params["id"]
        return json_text((await store.run(lambda books: find(books, owner, id))).body)

    async def file_content(request: Request) -> Response:
        """A file's content."""
        owner, id = caller(request), request.path_params["id"]
        thing = await store.run(lambda books: find(books, owner, id))
        name = quote(msgspec.json.decode(thing.body, type=File).filename)
        return Response(
            thing.more,
            media_type="application/octet-stream",
            headers={"content-disposition": f"attachment; filename*=UTF-8''{name}"},
        )

    return [
        plain(_PATH, files, query=FilesQuery, gives=Page[dict[str, Any]]),
        plain(_ONE, file, gives=File),
        plain(f"{_ONE}/content", file_content, gives=Media("application/octet-stream")),
    ]


def new_file(name: str, purpose: str, content: bytes, *, seconds: int | None = None) -> File:
    """`seconds`: how long it is kept; None for as long as there is room."""
    now = int(time.time())
    return File(
        id=f"file-{secrets.token_hex(16)}",
        bytes=len(content),
        created_at=now,
        expires_at=None if seconds is None else now + seconds,
        filename=name,
        purpose=purpose,
    )


def put(books: Books, owner: str, file: File, content: bytes) -> None:
    _expire(books)
    books.put(KIND, owner, file.id, msgspec.json.encode(file).decode(), content)


def find(books: Books, owner: str, id: str) -> Thing:
    """Raises RequestError (404)."""
    _expire(books)
    thing = books.get(KIND, owner, id)
    if thing is None:
        raise RequestError(
            f"There is no file {id!r}: it was deleted, has expired, or made room for newer ones.", status=404
        )
    return thing


def _delete(books: Books, owner: str, id: str) -> None:
    find(books, owner, id)
    if not books.delete(KIND, owner, id):
        raise RequestError(f"The file {id!r} is read by a batch; cancel that first.", status=409)


def _expire(books: Books) -> None:
    books.expire(KIND, "$.expires_at", time.time())


def _uploaded(parts: list[Part]) -> tuple[File, bytes]:
    files = [part for part in parts if part.name == "file" and part.filename is not None]
    if len(files) != 1:
        raise RequestError("file is missing, or given more than once; it is a file of the form.", param="file")
    fields = {part.name: part.content.decode("utf-8", "replace") for part in parts if part.filename is None}
    if fields.get("purpose") != "batch":
        raise RequestError(
            f"purpose must be batch, which is all that files are read for, got {fields.get('purpose')!r}.",
            param="purpose",
        )
    name, content = files[0].filename or "file", files[0].content
    return new_file(name[:256], "batch", content, seconds=_seconds(fields)), content


def _seconds(fields: dict[str, str]) -> int | None:
    given = fields.get("expires_after[seconds]")
    if given is None:
        return None
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise RequestError("expires_after.anchor must be created_at.", param="expires_after.anchor")
    least, most = _LIFE
    if not (given.isascii() and given.isdigit() and len(given) < 10 and least <= int(given) <= most):
        raise RequestError(f"expires_after.seconds must be in [{least}, {most}].", param="expires_after.seconds")
    return int(given)
