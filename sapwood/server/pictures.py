"""Images in conversations: how bodies give them, and how they come into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.base.errors import RequestError
from sapwood.base.media import Media, Span
from sapwood.images.gallery import Gallery

Picture = tuple[str, str]
"""A URL, and what the caller calls it."""


def picture(url: object, where: str) -> dict[str, Any]:
    """A part of a message that is an image. Raises RequestError for what is no URL."""
    if not isinstance(url, str) or not url:
        raise RequestError(f"{where}: an image needs a URL: data:image/...;base64,...", param=where)
    return {"type": "image", "url": url, "at": where}


def inline(data: object, where: str, kind: object = "image/png") -> dict[str, Any]:
    """The same of an image in base64."""
    if not isinstance(data, str) or not data:
        raise RequestError(f"{where}: an image needs its bytes in base64.", param=where)
    return picture(f"data:{kind};base64,{data}", where)


def pictures_in(messages: Sequence[dict[str, Any]]) -> list[Picture]:
    """All images of a conversation, in their order."""
    return [
        (part["url"], part["at"])
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
        if part.get("type") == "image"
    ]


def without_urls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as templates take it, which write a place for each image."""
    return [
        {**message, "content": [{"type": "image"} if part.get("type") == "image" else part for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


@dataclass(frozen=True)
class Shown:
    """A conversation as templates take it, and its images, with what prepared them."""

    messages: list[dict[str, Any]]
    media: list[Media]
    where: str
    gallery: Gallery | None

    def placed(self, tokens: list[int]) -> tuple[list[int], list[Span]]:
        """The prompt with what stands for the images. Raises RequestError where the template has not as many places."""
        return (tokens, []) if self.gallery is None else self.gallery.placed(tokens, self.media, self.where)


async def shown_in(messages: list[dict[str, Any]], gallery: Gallery | str, *, salt: str, most: int) -> Shown:
    """The images of a conversation, prepared, with up to `most` positions. Raises RequestError where the model takes none, or one cannot be
    used."""
    pictures = pictures_in(messages)
    if not pictures:
        return Shown(messages, [], "", None)
    if isinstance(gallery, str):
        raise RequestError(f"{pictures[0][1]}: {gallery}.", param=pictures[0][1])
    return Shown(without_urls(messages), await gallery.media(pictures, salt=salt, most=most), pictures[0][1], gallery)


def joined(first: object, second: object) -> Any:
    """Two contents, each a text or parts, as one."""
    parts = [one if isinstance(one, list) else [{"type": "text", "text": one}] for one in (first, second) if one]
    if all(isinstance(one, str) for one in (first, second) if one):
        return "\n".join(one for one in (first, second) if isinstance(one, str) and one)
    return [part for some in parts for part in some]
