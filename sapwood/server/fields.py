"""What bodies of several dialects have in common: types of numbers, spellings of one thing, and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from sapwood.base.errors import RequestError
from sapwood.server.body import field_error
from sapwood.server.front import Talk
from sapwood.server.pictures import picture, recording, sound

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


def listed(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, or several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def salt_of(cache_salt: str | None, extra_key: str | None) -> str:
    """What keeps a request's cached prefixes to those who send the same two; no pair can stand for another."""
    salt, key = ((given or "").replace("\0", "\0\0") for given in (cache_salt, extra_key))
    return f"{salt}\0:{key}" if key else salt


def texts_or_ids(given: str | Sequence[str | int | list[int]] | None, param: str) -> tuple[list[str], list[list[int]]]:
    """What a field has that takes a text, token ids, or several of either: texts, or lists of ids. Raises RequestError."""
    match given:
        case None:
            raise RequestError(f"{param} is missing.", param=param)
        case str() as text:
            return [text], []
        case [int(), *_] as ids if all(isinstance(id, int) for id in ids):
            return [], [cast(list[int], ids)]
        case [str(), *_] as several if all(isinstance(one, str) for one in several):
            return cast(list[str], several), []
        case [list(), *_] as several if all(isinstance(one, list) for one in several):
            return [], cast(list[list[int]], several)
        case []:
            raise RequestError(f"{param} is empty.", param=param)
    raise RequestError(f"{param} must not mix strings, token ids and lists of token ids.", param=param)


class ImageUrl(msgspec.Struct):
    """`detail` is not looked at: an image has the size that the model's processor gives it."""

    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    """A recording in base64. `format` is not looked at: the file says itself what it is."""

    data: str
    format: str | None = None


class AudioUrl(msgspec.Struct):
    url: str


class ContentPart(msgspec.Struct, omit_defaults=True):
    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None
    input_audio: InputAudio | None = None
    audio_url: AudioUrl | str | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As templates take it. Raises RequestError for content that is not text."""
        where = f"messages[{index}].content"
        if self.content is None and self.role != "assistant":
            raise RequestError(f"{where} is missing.", param=where)
        parts = [_part(part, where) for part in self.content] if isinstance(self.content, list) else None
        for number, call in enumerate(self.tool_calls or ()):
            _check_call(call, f"messages[{index}].tool_calls[{number}]")
        message: dict[str, Any] = msgspec.to_builtins(self)
        return message if parts is None else message | {"content": parts}


def _part(part: ContentPart, where: str) -> dict[str, Any]:
    """A text, an image or a recording. Raises RequestError for all others."""
    if part.type == "text" and part.text is not None:
        return {"type": "text", "text": part.text}
    if part.type == "image_url":
        return picture(part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url, where)
    if part.type == "input_audio":
        return sound(part.input_audio.data if part.input_audio else None, where)
    if part.type == "audio_url":
        return recording(part.audio_url.url if isinstance(part.audio_url, AudioUrl) else part.audio_url, where)
    raise RequestError(
        f"{where}: a part of type {part.type!r} without text is not supported; this model takes text.", param=where
    )


def said(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message of a body as templates take it, with all that its client wrote into it. Raises RequestError."""
    try:
        known = msgspec.convert(message, Message)
    except msgspec.ValidationError as error:
        raise field_error(error, within=f"messages[{index}]") from None
    others = {name: value for name, value in message.items() if name not in Message.__struct_fields__}
    return others | known.plain(index)


def _check_call(call: dict[str, Any], where: str) -> None:
    """Raise RequestError for a call that a template would print as nothing. Arguments may be anything a model wrote."""
    function = call.get("function")
    if not isinstance(function, dict):
        raise RequestError(
            f"{where}.function is missing; calls of type function are supported.", param=f"{where}.function"
        )
    if not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function.name must be a string.", param=f"{where}.function.name")
    if not isinstance(function.get("arguments"), str | dict | None):
        param = f"{where}.function.arguments"
        raise RequestError(f"{param} must be a string of JSON.", param=param)


class Messages:
    """What a body with messages can do. The fields are declared by the bodies, which have one struct as base."""

    __slots__ = ()

    messages: list[dict[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    add_special_tokens: bool | None
    chat_template_kwargs: dict[str, Any] | None

    def talk(self, **template: Any) -> Talk:
        """The conversation; `template` are more arguments of the template. Raises RequestError naming the field."""
        if not self.messages:
            raise RequestError("messages is empty; at least one message is needed.", param="messages")
        messages = [said(message, index) for index, message in enumerate(self.messages)]
        resume = bool(self.continue_final_message)
        answer = not resume if self.add_generation_prompt is None else self.add_generation_prompt
        if resume and answer:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        return Talk(
            messages=messages,
            continues=resume,
            answers=answer,
            add_special=bool(self.add_special_tokens),
            template=template | (self.chat_template_kwargs or {}),
        )
