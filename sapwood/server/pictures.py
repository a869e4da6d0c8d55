"""Images and recordings in conversations: how bodies give them, and how they come into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sapwood.base.errors import RequestError
from sapwood.base.media import Kind, Media, Span
from sapwood.images.gallery import Cabinet, taking

_KINDS: tuple[Kind, ...] = ("image", "audio")


class Shot(NamedTuple):
    """A medium by its URL, and what the caller calls it."""

    kind: Kind
    url: str
    at: str


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


def recording(url: object, where: str) -> dict[str, Any]:
    """A part of a message that is a recording. Raises RequestError for what is no URL."""
    if not isinstance(url, str) or not url:
        raise RequestError(f"{where}: a recording needs a URL: data:audio/...;base64,...", param=where)
    return {"type": "audio", "url": url, "at": where}


def sound(data: object, where: str) -> dict[str, Any]:
    """The same of one in base64. Its format need not be told: the file's first bytes say what it is."""
    if not isinstance(data, str) or not data:
        raise RequestError(f"{where}: input_audio.data must be a recording in base64.", param=where)
    return recording(data if data.startswith("data:") else f"data:audio/wav;base64,{data}", where)


def shots_in(messages: Sequence[dict[str, Any]]) -> list[Shot]:
    """All media of a conversation, in their order."""
    return [
        Shot(part["type"], part["url"], part["at"])
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
        if part.get("type") in _KINDS
    ]


def without_urls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as templates take it, which write a place for each medium."""
    return [
        {**message, "content": [{"type": part["type"]} if part.get("type") in _KINDS else part for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


@dataclass(frozen=True)
class Shown:
    """A conversation as templates take it, and its media, with what prepared them."""

    messages: list[dict[str, Any]]
    media: list[Media]
    where: str
    gallery: Cabinet | None

    def worded(self, text: str) -> str:
        """The rendered conversation as it is cut into tokens."""
        return text if self.gallery is None else self.gallery.worded(text)

    def placed(self, tokens: list[int]) -> tuple[list[int], list[Span]]:
        """The prompt with what stands for its media. Raises RequestError where the template has not as many places."""
        return (tokens, []) if self.gallery is None else self.gallery.placed(tokens, self.media, self.where)


async def shown_in(messages: list[dict[str, Any]], gallery: Cabinet | str, *, salt: str, most: int) -> Shown:
    """The media of a conversation, prepared, with up to `most` positions. Raises RequestError where the model takes none, or one cannot be
    used."""
    return await shown_of(shots_in(messages), gallery, messages=messages, salt=salt, most=most)


async def shown_of(
    shots: Sequence[Shot], gallery: Cabinet | str, *, salt: str, most: int, messages: list[dict[str, Any]] | None = None
) -> Shown:
    """The same of media by themselves."""
    if not shots:
        return Shown(messages or [], [], "", None)
    cabinet = taking(gallery, [(shot.kind, shot.at) for shot in shots])
    media = await cabinet.media([(shot.url, shot.at) for shot in shots], salt=salt, most=most)
    return Shown(without_urls(messages or []), media, shots[0].at, cabinet)


def joined(first: object, second: object) -> Any:
    """Two contents, each a text or parts, as one."""
    parts = [one if isinstance(one, list) else [{"type": "text", "text": one}] for one in (first, second) if one]
    if all(isinstance(one, str) for one in (first, second) if one):
        return "\n".join(one for one in (first, second) if isinstance(one, str) and one)
    return [part for some in parts for part in some]
