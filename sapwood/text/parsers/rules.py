"""The grammar of an output that has to call tools rightly, from the same descriptions that outputs are read by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Any

from sapwood.base.grammar import Grammar, Part
from sapwood.text.parsers.formats import Dialect, Keywords, Named, Object, Reasoning, Section, Shape, Tagged
from sapwood.text.parsers.values import dump, property_schema

NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, kw_only=True)
class OfferedTool:
    """A tool that may be called. `schema` is of its parameters; of a tool that is not `strict` any object may do."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


class Rules:
    """Writes grammars. `special` are the tokens that are not written as their text; `ends` those that end an output."""

    def __init__(self, dialect: Dialect, special: Mapping[str, int], ends: Sequence[int]) -> None:
        self._dialect = dialect
        self._special = special
        self._ends = ends
        names = sorted(special, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def must_call(self, offers: Sequence[OfferedTool], *, many: bool) -> Part:
        """One call of these tools, or with `many` any number."""
        return self._section(self._first, offers, many=many)

    def may_call(self, offers: Sequence[OfferedTool], *, many: bool) -> Part:
        """Text in which calls are right: strict tools as their schemas want, the others with any arguments."""
        loose = [
            one if one.strict else OfferedTool(name=one.name, schema={"type": "object"}, strict=False) for one in offers
        ]
        section = self._first
        if self._answer:  # messages have a heading each, which says whether it is a call
            return _any(self._section(section, loose, many=many), _seq(self._marker(self._answer), {"free": True}))
        if not section.open:
            head = re.escape((section.begin or section.shape.head)[0])
            text = {"regex": rf"([^{head}\s](.|\n)*)?"}
            return _any(self._section(section, loose, many=many), text)
        call = _seq(self._until(section.open), self._section(section, loose, many=many, opened=True))
        return _seq({"some": call} if many else {"maybe": call}, {"free": True})

    def text_or_call(self, text: Grammar, offers: Sequence[OfferedTool], *, many: bool) -> Part:
        """Either an answer that a grammar restricts, or calls."""
        return _any(self.text(text), self.must_call(offers, many=many))

    def text(self, text: Grammar) -> Part:
        """An answer that a grammar restricts."""
        return _seq(self._marker(self._answer), {"grammar": _plain(text)})

    def behind_thoughts(self, part: Part, *, open: bool) -> Grammar:
        """The grammar behind thoughts that have begun (`open`), or that the model may have or not."""
        reasoning = self._dialect.reasoning
        assert reasoning is not None
        between = [self._marker(reasoning.resume), *([{"regex": r"\n{0,2}"}] if reasoning.lines else [])]
        if open:
            return Grammar.parts(_seq(*between, part), after=reasoning.end)
        thoughts = _seq(self._marker(reasoning.begin), self._until(reasoning.end), *between)
        return Grammar.parts(_seq({"maybe": thoughts}, part))

    @property
    def _first(self) -> Section:
        assert self._dialect.tools is not None
        return self._dialect.tools.sections[0]

    @property
    def _answer(self) -> str:
        reasoning: Reasoning | None = self._dialect.reasoning
        return reasoning.answer if reasoning is not None else ""

    def _marker(self, text: str) -> Part:
        """A text, in which names of special tokens are those tokens."""
        parts: list[Part] = []
        at = 0
        for found in self._split.finditer(text):
            parts += [{"text": text[at : found.start()]}] if found.start() > at else []
            parts.append({"token": self._special[found[0]]})
            at = found.end()
        return _seq(*parts, *([{"text": text[at:]}] if at < len(text) else []))

    def _until(self, end: str) -> Part:
        """Free text and what ends it."""
        return {"until": end} if self._split.search(end) is None else _seq({"free": True}, self._marker(end))

    def _section(self, section: Section, offers: Sequence[OfferedTool], *, many: bool, opened: bool = False) -> Part:
        """With `opened` the section's opening has been written."""
        call = _any(*(self._call(section.shape, offer) for offer in offers))
        open = _seq(*([] if opened else [self._marker(section.open)]), self._marker(section.begin))
        close = _seq(self._marker(section.end), self._close(section.close))
        if self._ends_output(section.close):
            many = False
        if not many:
            return _seq(open, call, close)
        if section.single:
            one = _seq(self._marker(section.open), self._marker(section.begin), call, close)
            return _seq(open, call, close, {"some": _seq(self._marker(section.between), one)})
        return _seq(open, call, {"some": _seq(self._marker(section.comma), call)}, close)

    def _ends_output(self, close: str) -> bool:
        return self._special.get(close) in self._ends

    def _close(self, close: str) -> Part:
        """A token that ends the output may follow any complete text anyhow."""
        return _seq() if self._ends_output(close) else self._marker(close)

    @singledispatchmethod
    def _call(self, shape: Shape, offer: OfferedTool) -> Part:
        raise TypeError(shape)

    @_call.register
    def _(self, shape: Object, offer: OfferedTool) -> Part:
        head = f'{{"name": {dump(offer.name)}, "{shape.arguments}": '
        return _seq({"text": head}, {"json": dict(offer.schema)}, {"text": "}"})

    @_call.register
    def _(self, shape: Named, offer: OfferedTool) -> Part:
        number: list[Part] = [{"text": ":"}, {"regex": "[0-9]{1,4}"}] if shape.numbered else []
        return _seq(
            self._marker(shape.before + shape.prefix + offer.name),
            *number,
            self._marker(shape.between),
            {"json": dict(offer.schema)},
            self._marker(shape.after),
        )

    @_call.register
    def _(self, shape: Tagged, offer: OfferedTool) -> Part:
        line = "\n" if shape.newlines else ""
        parts: list[Part] = [self._marker(shape.before + offer.name + shape.between)]
        for key, schema, required in _properties(offer.schema):
            part = self._tagged(shape, key, schema, line)
            parts.append(part if required else {"maybe": part})
        if _any_key(offer.schema):
            value = self._until(line + shape.end)
            middle = shape.text_middle or shape.middle
            key_part = _seq(self._marker(shape.key), {"regex": r"[\w.\-]{1,64}"}, self._marker(middle + line))
            parts.append({"some": _seq(key_part, value)})
        return _seq(*parts, self._marker(shape.after))

    def _tagged(self, shape: Tagged, key: str, schema: Any, line: str) -> Part:
        texts = _texts(schema)
        middle = shape.text_middle if shape.text_middle and texts is not None else shape.middle
        head = self._marker(shape.key + key + middle + line)
        if texts is None:
            return _seq(head, {"json": schema}, self._marker(line + shape.end))
        if texts:
            return _seq(head, _any(*({"text": text} for text in texts)), self._marker(line + shape.end))
        return _seq(head, self._until(line + shape.end))

    @_call.register
    def _(self, shape: Keywords, offer: OfferedTool) -> Part:
        pairs = [
            (_seq(self._marker(key + shape.equals), self._value(shape, schema)), required)
            for key, schema, required in _properties(offer.schema)
        ]
        comma = self._marker(shape.comma)
        more: Part = _seq()  # what may follow when something has been written
        first: Part = _seq()  # and when nothing has
        for part, required in reversed(pairs):
            first = _seq(part, more) if required else _any(_seq(part, more), first)
            follows = _seq(comma, part)
            more = _seq(follows if required else {"maybe": follows}, more)
        if _any_key(offer.schema):
            pair = _seq({"regex": r"[A-Za-z_]\w{0,63}"}, self._marker(shape.equals), self._value(shape, True))
            first = {"maybe": _seq(pair, {"some": _seq(comma, pair)})}
        return _seq(self._marker(shape.before + offer.name + shape.begin), first, self._marker(shape.end))

    def _value(self, shape: Keywords, schema: Any) -> Part:
        texts = _texts(schema)
        if shape.quote == '"' or texts is None:
            return {"json": schema}
        quote = self._marker(shape.quote)
        return (
            _seq(quote, _any(*({"text": text} for text in texts)), quote)
            if texts
            else _seq(quote, self._until(shape.quote))
        )


def _seq(*parts: Part) -> Part:
    flat = [inner for part in parts for inner in part.get("seq", [part])]
    return flat[0] if len(flat) == 1 else {"seq": flat}


def _any(*parts: Part) -> Part:
    return parts[0] if len(parts) == 1 else {"any": list(parts)}


def _plain(grammar: Grammar) -> dict[str, Any]:
    return {"kind": grammar.kind, "text": grammar.text}


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Each argument's key, its schema with the definitions that it may refer to, and whether it is required."""
    found = schema.get("properties")
    properties = found if isinstance(found, dict) else {}
    required = schema.get("required") or ()
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    several = []
    for key, plain in properties.items():
        inner = plain if _texts(plain) is not None else property_schema(schema, key)
        several.append((key, {**inner, **shared} if isinstance(inner, dict) else inner, key in required))
    return several


def _any_key(schema: Mapping[str, Any]) -> bool:
    return not schema.get("properties") and schema.get("additionalProperties") is not False


def _texts(schema: Any) -> list[str] | None:
    """The texts that a string may be; none for any text; None for what is no string."""
    if not isinstance(schema, dict):
        return None
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if isinstance(values, list):
        return values if values and all(isinstance(value, str) for value in values) else None
    return [] if schema.get("type") == "string" else None
