"""What is asked for in a request of any of the dialects: the texts in it, and what else there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from sapwood.route.sizes import estimated

_MOST = 40_000  # characters of a text that are looked at: half of them from its beginning, half from its end
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image")
_AUDIO = ("audio", "input_audio", "audio_url")
_SCHEMAS = ("response_format", "output_format", "output_config", "structured_outputs", "guided_json", "format")
_THOUGHT = ("medium", "high", "xhigh", "max")
_BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class Question:
    """One request's body, read as far as it is looked at. What is not as its API has it is passed over: the server will say so."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._messages = list(_messages(body))

    @property
    def messages(self) -> int:
        """How many there are."""
        return len(self._messages)

    @cached_property
    def last(self) -> str:
        """The last thing that the user said."""
        return next((text for role, text in reversed(self._messages) if role == "user" and text), "")

    @cached_property
    def user(self) -> str:
        """All that the user said."""
        return "\n".join(text for role, text in self._messages if role == "user" and text)

    @cached_property
    def all(self) -> str:
        """All texts, those of the system and of tools among them."""
        return "\n".join([*(text for _, text in _system(self._body)), *(text for _, text in self._messages if text)])

    @property
    def opening(self) -> list[str]:
        """What the system says, and what the user says first."""
        first = next((text for role, text in self._messages if role == "user" and text), "")
        return [
            *(text for _, text in _system(self._body)),
            *(text for role, text in self._messages[:1] if role != "user"),
            first,
        ]

    def part(self, name: str) -> str:
        """One of the three by its name, its middle left out where it is long."""
        text: str = getattr(self, name)
        return text if len(text) <= _MOST else f"{text[: _MOST // 2]}\n{text[-_MOST // 2 :]}"

    @cached_property
    def tokens(self) -> int:
        """Of the prompt, estimated."""
        return estimated(self.all) + (estimated(str(self._body["tools"])) if self._body.get("tools") else 0)

    def answer(self, usual: int) -> int:
        """Tokens that the answer may have: its bound, but no more than is usual."""
        bounds = [bound for name in _BOUNDS if isinstance(bound := self._body.get(name), int) and bound > 0]
        return min([usual, *bounds])

    @cached_property
    def has(self) -> frozenset[str]:
        """Which of tools, images, audio, schema, system and stream there are."""
        body, found = self._body, set[str]()
        if body.get("tools") or body.get("functions"):
            found.add("tools")
        if any(_is_schema(body.get(name)) for name in _SCHEMAS) or _is_schema(_of(body.get("text")).get("format")):
            found.add("schema")
        if any(text for _, text in _system(body)) or any(role in ("system", "developer") for role, _ in self._messages):
            found.add("system")
        if body.get("stream"):
            found.add("stream")
        kinds = set(_kinds(body))
        found.update(name for name, all_of in (("images", _IMAGES), ("audio", _AUDIO)) if kinds.intersection(all_of))
        return frozenset(found)

    @cached_property
    def wants_thought(self) -> bool:
        """Whether a field says that it is to be thought about."""
        body = self._body
        efforts = (body.get("reasoning_effort"), _of(body.get("reasoning")).get("effort"), body.get("think"))
        return (
            any(effort in _THOUGHT for effort in efforts if isinstance(effort, str))
            or body.get("think") is True
            or _of(body.get("thinking")).get("type") in ("enabled", "adaptive")
            or _of(body.get("chat_template_kwargs")).get("enable_thinking") is True
        )


def _messages(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Roles and texts, in order; a single prompt is what a user says."""
    listed = body.get("messages", body.get("input"))
    if isinstance(listed, list) and any(isinstance(one, dict) for one in listed):
        for message in listed:
            if isinstance(message, dict):
                content = message.get("content", message.get("output"))
                role = message.get("role") or ("tool" if "output" in message else "assistant")
                texts = "\n".join(_texts(content))
                if role == "user" and _is_result(content):
                    role = "tool"
                yield str(role), texts
        return
    for name in ("prompt", "input", "text", "query"):
        value = body.get(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield "user", text


def _system(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("system", "instructions"):
        for text in _texts(body.get(name)):
            yield "system", text


def _texts(content: object) -> Iterator[str]:
    """The texts of a message's content: a string, or parts, those of tools' results included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict):
                if part.get("type") in _TEXTS and isinstance(part.get("text"), str):
                    yield part["text"]
                elif part.get("type") == "tool_result":
                    yield from _texts(part.get("content"))


def _kinds(body: Mapping[str, Any]) -> Iterator[str]:
    """The types of all parts of all messages."""
    listed = body.get("messages", body.get("input"))
    for message in listed if isinstance(listed, list) else []:
        if isinstance(message, dict):
            if message.get("images"):  # Ollama's
                yield "image"
            content = message.get("content")
            for part in content if isinstance(content, list) else []:
                if isinstance(part, dict) and isinstance(part.get("type"), str):
                    yield part["type"]
    if body.get("images"):
        yield "image"


def _is_result(content: object) -> bool:
    """Whether Anthropic's user is a tool that answers."""
    parts = content if isinstance(content, list) else []
    return bool(parts) and all(isinstance(part, dict) and part.get("type") == "tool_result" for part in parts)


def _is_schema(value: object) -> bool:
    if isinstance(value, str):
        return value == "json"
    return (isinstance(value, dict) and value.get("type") not in (None, "text")) or bool(_of(value).get("format"))


def _of(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
