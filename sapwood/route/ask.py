"""What the router reads of a request: the model it wants, whom it belongs to, how its prompt begins, and how much it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.route.forms import place_of

_BLOCK = 256  # bytes of a prompt that are told apart; about 64 tokens
_LONGEST = 512  # blocks that are looked at
_OPENING = ("tools", "system", "instructions")  # what templates put before everything else, in this order
_PROMPT = ("messages", "prompt", "input", "text", "contents")
_SESSION = ("prompt_cache_key", "conversation", "previous_response_id", "user", "metadata")
_SPAN = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_USUAL_SPAN = 256  # tokens of an answer of which nothing is said
_TOKEN = 4  # bytes, about
_ENCODED = re.compile(
    rb"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{512,}"
)  # an image or a recording, which is not as many tokens as it has letters
_USAGE_PATHS = ("/v1/chat/completions", "/v1/completions")  # where streams tell their usage if they are asked to

_Fields = dict[str, msgspec.Raw]
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is raised for what is no JSON, or too deep to be read."""

_fields = msgspec.json.Decoder(_Fields)
_text = msgspec.json.Decoder(str)


class _Whose(msgspec.Struct):
    id: str | None = None
    user_id: str | None = None


class Ask:
    """The body of a request, read only as far as its outermost fields.

    Attributes:
        tokens: The token ids of its prompt (`kv.packed`), where somebody has asked for them.
        more: Fields that its body has when it is sent on, where it is for the model `more_of`.
    """

    tokens: bytes | None = None
    more: Mapping[str, Any] = MappingProxyType({})
    more_of: str | None = None

    def __init__(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        session_header: str = "",
        session_cookie: str = "",
    ) -> None:
        """Raises RequestError (400) for a body that says it is JSON and is no object. One that says something else, as that of curl's -d does,
        is read where it is one; what to say of that is for the server."""
        self.path, self.body, self.headers = path, body, headers
        self._session_header, self._session_cookie = session_header, session_cookie
        self._fields: _Fields = {}
        self._form: slice | None = None
        self.is_form = False
        self.model: str | None = None
        kind = headers.get("content-type", "application/json")
        if kind[:10].lower() != "multipart/":
            self._read_fields(said_so="json" in kind.lower())
        else:
            self.is_form = True
            if place := place_of(kind, body, "model"):
                self._form = place
                self.model = body[place].decode("utf-8", "replace")

    def _read_fields(self, *, said_so: bool) -> None:
        if not self.body or not (said_so or self.body.lstrip()[:1] == b"{"):
            return
        try:
            self._fields = _fields.decode(self.body)
        except UNREADABLE as error:
            if said_so:
                raise RequestError(f"The body is no JSON object: {error}.", code="invalid_json") from error
        self.model = self._text("model")

    @cached_property
    def session(self) -> str | None:
        """What tells that requests belong together, if anything does: a header, a cookie, or a field of the body."""
        if found := self.headers.get(self._session_header) or self._cookie():
            return found
        return next((text for name in _SESSION if (text := self._text(name) or self._inner(name))), None)

    @cached_property
    def blocks(self) -> list[int]:
        """A number for each block of the prompt, of it and of all before it: equal beginnings have equal ones."""
        prompt = self._prompt
        numbers, number = [], hash((self.model or "").encode())
        for start in range(0, min(len(prompt) - _BLOCK + 1, _LONGEST * _BLOCK), _BLOCK):
            number = hash((number, prompt[start : start + _BLOCK]))
            numbers.append(number)
        return numbers

    @cached_property
    def prompt_tokens(self) -> int:
        """How many tokens its prompt has, about, by its bytes; what is encoded in letters counts as nothing."""
        return len(_ENCODED.sub(b"", self._prompt)) // _TOKEN

    @cached_property
    def weight(self) -> int:
        """Tokens of its prompt and of the longest answer that it allows, about: what is set against others' requests."""
        spans = (self._number(name) for name in _SPAN)
        return self.prompt_tokens + next((span for span in spans if span is not None), _USUAL_SPAN)

    @property
    def may_be_asked_for_usage(self) -> bool:
        """Whether its answer is a stream that says how many tokens it has used only if it is asked to, and it is not."""
        if self.path not in _USAGE_PATHS or bytes(self._fields.get("stream", b"")) != b"true":
            return False
        try:
            options = msgspec.json.decode(self._fields.get("stream_options", msgspec.Raw(b"null")))
        except UNREADABLE:
            return False
        return options is None or (isinstance(options, dict) and not options.get("include_usage"))

    def named(
        self,
        model: str | None,
        *,
        usage: bool = False,
        more: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
    ) -> bytes:
        """The body, asking for a model of that name (None: for none), and with `usage` for what its stream has used; with `more` fields than
        its own, and `without` some."""
        mine = self.more if model == self.more_of else {}
        added = mine if more is None else more
        changed: _Fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in added.items()}
        if model is not None and model != self.model:
            if self._form is not None:
                return self.body[: self._form.start] + model.encode() + self.body[self._form.stop :]
            if "model" in self._fields:
                changed["model"] = msgspec.Raw(msgspec.json.encode(model))
        if usage:
            given = msgspec.json.decode(self._fields.get("stream_options", msgspec.Raw(b"null"))) or {}
            changed["stream_options"] = msgspec.Raw(msgspec.json.encode(given | {"include_usage": True}))
        if not changed:
            return self.body
        return msgspec.json.encode({name: raw for name, raw in self._fields.items() if name not in without} | changed)

    def raw(self, name: str) -> msgspec.Raw | None:
        """An outermost field as it was written."""
        return self._fields.get(name)

    @cached_property
    def _prompt(self) -> bytes:
        fields = self._fields
        return b"".join(bytes(fields[name]) for name in (*_OPENING, *_PROMPT) if name in fields)

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The whole body, {} of a form; not to be changed. Raises RequestError (400) where it is no JSON object."""
        if self.is_form:
            return {}
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except UNREADABLE as error:
            raise RequestError(f"The body is no JSON object: {error}.", code="invalid_json") from error

    def changed(self, body: bytes) -> Ask:
        """The same request with another body, which is JSON."""
        header, cookie = self._session_header, self._session_cookie
        return Ask(self.path, body, self.headers, session_header=header, session_cookie=cookie)

    def _text(self, name: str) -> str | None:
        if (raw := self._fields.get(name)) is None:
            return None
        try:
            return _text.decode(raw)
        except UNREADABLE:
            return None

    def _inner(self, name: str) -> str | None:
        """What an object that says whose it is says: a conversation of the Responses API, metadata of Anthropic's messages."""
        if (raw := self._fields.get(name)) is None:
            return None
        try:
            told = msgspec.json.decode(raw, type=_Whose)
        except UNREADABLE:
            return None
        return told.id or told.user_id

    def _cookie(self) -> str | None:
        for pair in self.headers.get("cookie", "").split(";") if self._session_cookie else ():
            name, _, value = pair.strip().partition("=")
            if name == self._session_cookie and value:
                return value
        return None

    def _number(self, name: str) -> int | None:
        if (raw := self._fields.get(name)) is None:
            return None
        try:
            return max(msgspec.json.decode(raw, type=int), 0)
        except UNREADABLE:
            return None
