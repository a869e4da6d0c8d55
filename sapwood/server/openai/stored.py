"""Chats that are kept (`store: true`): listed, found again, labelled, deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response, json_text
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.server.openai.choices import ChatChoice, ChatChunkChoice, Sum
from sapwood.server.openai.lists import Deleted, ListQuery, Page, page_in, page_of
from sapwood.server.openai.metadata import Metadata
from sapwood.server.openai.protocol import ChatRequest
from sapwood.server.openai.replies import Reply, usage_of
from sapwood.server.passage import caller
from sapwood.server.routes import Described, plain, post, query_of
from sapwood.server.store import Books, Thing

KIND = "chat"

_LABEL = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
_MOST_CONDITIONS = 17
_TOLD = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice", "response_format",
)  # fmt: skip


class Labels(msgspec.Struct):
    metadata: Metadata | None


class ChatsQuery(ListQuery, kw_only=True):
    """`metadata[name]=text` asks for chats with that."""

    order: Literal["asc", "desc"] = "asc"
    model: str | None = None


class MessagesQuery(ListQuery, kw_only=True):
    order: Literal["asc", "desc"] = "asc"


class StoredMessage(msgspec.Struct, kw_only=True):
    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


def keep(front: Front, owner: str, body: ChatRequest, reply: Reply[ChatChoice]) -> None:
    """Before anything that is asked of the store later."""
    asked = {name: value for name in _TOLD if (value := getattr(body, name)) is not None}
    told = msgspec.to_builtins(reply) | msgspec.to_builtins(asked) | {"metadata": body.metadata or {}}
    whole, messages = msgspec.json.encode(told).decode(), msgspec.json.encode(body.messages)
    front.store.soon(lambda books: books.put(KIND, owner, reply.id, whole, messages))


def kept_when_over(
    front: Front,
    owner: str,
    body: ChatRequest,
    reply: Reply[Any],
    choices: Sequence[Choice],
    shape: Callable[[News], Iterable[ChatChunkChoice]],
) -> Callable[[News], Iterator[ChatChunkChoice]]:
    """The same `shape`, with what it has made kept as one answer as soon as all choices have ended."""
    sums = {choice.index: Sum(choice.index) for choice in choices}

    def shaped(news: News) -> Iterator[ChatChunkChoice]:
        chunks = list(shape(news))
        for chunk in chunks:
            sums[chunk.index].add(chunk)
        whole = [found for one in sums.values() if (found := one.whole()) is not None]
        if len(whole) == len(sums) and news.choice.finish is not None:
            answer = msgspec.structs.replace(reply, object="chat.completion", choices=whole, usage=usage_of(choices))
            keep(front, owner, body, answer)
        yield from chunks

    return shaped


_PATH, _ONE = "/v1/chat/completions", "/v1/chat/completions/{id}"


def routes(front: Front) -> list[Described]:
    return [*_looks(front), *_changes(front)]


def _looks(front: Front) -> list[Described]:
    store = front.store

    async def stored_chats(request: Request) -> Response:
        """The chats that were kept."""
        owner, query = caller(request), query_of(request, ChatsQuery)
        where: dict[tuple[str, ...], str] = {} if query.model is None else {("model",): query.model}
        for name, value in request.query_params.items():
            if label := _LABEL.fullmatch(name):
                where["metadata", label[1]] = value
        if len(where) > _MOST_CONDITIONS:
            raise RequestError(f"At most {_MOST_CONDITIONS} conditions in one query.", param="metadata")

        return json_response(await store.run(lambda books: page_in(books, KIND, owner, query, where)))

    async def stored_chat(request: Request) -> Response:
        """A chat that was kept."""
        owner, id = caller(request), request.path_params["id"]
        return json_text((await store.run(lambda books: _find(books, owner, id))).body)

    async def chat_messages(request: Request) -> Response:
        """The messages that a chat which was kept answers."""
        owner, id, query = caller(request), request.path_params["id"], query_of(request, MessagesQuery)
        raw = msgspec.json.decode((await store.run(lambda books: _find(books, owner, id))).more)
        messages = [msgspec.to_builtins(_message(id, index, one)) for index, one in enumerate(raw)]
        return json_response(page_of(query.window(messages), query.limit))

    return [
        plain(_PATH, stored_chats, query=ChatsQuery, gives=Page[dict[str, Any]]),
        plain(_ONE, stored_chat, gives=Reply[ChatChoice]),
        plain(f"{_ONE}/messages", chat_messages, query=MessagesQuery, gives=Page[dict[str, Any]]),
    ]


def _changes(front: Front) -> list[Described]:
    store = front.store

    async def label_chat(request: Request, body: Labels) -> Response:
        """Change the metadata of a chat that was kept."""
        owner, id = caller(request), request.path_params["id"]

        def label(books: Books) -> str:
            told = msgspec.json.decode(_find(books, owner, id).body) | {"metadata": body.metadata or {}}
            books.tell(id, msgspec.json.encode(told).decode())
            return _find(books, owner, id).body

        return json_text(await store.run(label))

    async def delete_chat(request: Request) -> Response:
        """Forget a chat."""
        owner, id = caller(request), request.path_params["id"]
        if not await store.run(lambda books: books.delete(KIND, owner, id)):
            raise _unknown(id)
        return json_response(Deleted(id, "chat.completion.deleted"))

    return [
        post(front, _ONE, Labels, label_chat, gives=Reply[ChatChoice]),
        plain(_ONE, delete_chat, methods=["DELETE"], gives=Deleted),
    ]


def _find(books: Books, owner: str, id: str) -> Thing:
    thing = books.get(KIND, owner, id)
    if thing is None:
        raise _unknown(id)
    return thing


def _unknown(id: str) -> RequestError:
    return RequestError(
        f"There is no chat {id!r}: it was not stored (store: true), was deleted, or made room for newer ones.",
        status=404,
    )


def _message(chat: str, index: int, message: dict[str, Any]) -> StoredMessage:
    content = message.get("content")
    return StoredMessage(
        id=f"{chat}-{index}",
        role=message["role"],
        content=content if isinstance(content, str) else None,
        content_parts=content if isinstance(content, list) else None,
        name=message.get("name"),
        tool_calls=message.get("tool_calls") or UNSET,
        tool_call_id=message.get("tool_call_id") or UNSET,
    )
