"""From what a request gives to what llguidance compiles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import llguidance
import msgspec
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar.schema import rewrite
from sapwood.grammar.size import bound_expression, bound_patterns

MAX_BYTES = 512 << 10  # of a grammar's text
_MAX_RULES_BYTES = 64 << 10  # of one that Python has to read character by character

WHITESPACE = r"[ ]?|\n[ ]{0,32}|\n\t{0,8}"
"""What may stand between two tokens of JSON unless a request says otherwise: without a bound, a model that is not sure
how to go on writes spaces until it is cut off."""

_ASCII = "dw"  # \d and \w mean what they mean in JSON schemas, not any script's digits and letters
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")
_UNFORCED = '%llguidance {"no_forcing": true}'  # said once, it holds for all grammars within


class Structure(msgspec.Struct):
    """A stretch that follows `begin` and is followed by `end`; between them JSON of the schema."""

    begin: str
    end: str = ""
    schema: dict[str, Any] | bool = True


class StructuralTag(msgspec.Struct):
    """Free text in which each occurrence of a trigger has to go on as one of the structures that begin with it."""

    structures: list[Structure]
    triggers: list[str]


class Translated(NamedTuple):
    """llguidance's form of a grammar, which may still be refused when it is compiled.

    `unchecked` names the keywords of JSON schemas that it leaves out: a text that it accepts may be wrong by them, and has
    to be checked when it is complete (`end_check.EndCheck`).
    """

    text: str
    unchecked: tuple[str, ...]


def translate(grammar: Grammar, *, compact_json: bool = False, forcing: bool = True) -> Translated:
    """`compact_json` allows no whitespace in JSON. A schema's own "x-guidance" goes before. Without `forcing` llguidance does
    not look for tokens that are forced, and every way to write a text is allowed. Raises GrammarError."""
    unchecked: dict[str, None] = {}
    text = _text(grammar, _Schemas(compact_json, unchecked))
    return Translated(text if forcing else _unforced(text), tuple(unchecked))


def _unforced(text: str) -> str:
    """llguidance's form of a grammar, made so that it forces nothing."""
    if not text.startswith("{"):
        return f"{text}\n{_UNFORCED}"
    first, *others = json.loads(text)["grammars"]
    if first.get("lark_grammar"):
        first["lark_grammar"] = _unforced(first["lark_grammar"])
        return json.dumps({"grammars": [first, *others]})
    outer = {"lark_grammar": _unforced("start: @whole")}
    return json.dumps({"grammars": [outer, first | {"name": "whole"}, *others]})


def _text(grammar: Grammar, schemas: _Schemas) -> str:
    text = grammar.text
    size = len(text.encode("utf-8", "surrogatepass"))
    limit = _MAX_RULES_BYTES if grammar.kind == "gbnf" else MAX_BYTES
    if size > limit:
        raise GrammarError(f"it has {size} bytes; at most {limit} are compiled")
    match grammar.kind:
        case "json_schema":
            return schemas.whole(_parsed(text, "JSON schema"))
        case "regex":
            bound_expression(text)
            return _lark(f"start: /{llguidance.regex_to_lark(text, _ASCII)}/")
        case "choice":
            return llguidance.LLMatcher.grammar_from_regex("|".join(map(_literal, _choices(text))))
        case "lark":
            return _lark(text)
        case "gbnf":
            return _lark(_lark_of(text))
        case "structural_tag":
            tag = structural_tag(text)
            return _lark("\n".join(_tagged(tag, schemas)))
        case "parts":
            return _Parts(schemas).translate(text)


def _lark(text: str) -> str:
    return llguidance.LLMatcher.grammar_from_lark(text)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"it is not a {what}: {error}") from None


class _Schemas:
    """Writes JSON schemas for llguidance. `unchecked` collects what they leave out."""

    def __init__(self, compact: bool, unchecked: dict[str, None]) -> None:
        self._compact = compact
        self._unchecked = unchecked

    def whole(self, schema: Any) -> str:
        """A grammar of its own."""
        try:
            return llguidance.LLMatcher.grammar_from_json_schema(self.text(schema))
        except ValueError as error:
            raise GrammarError(str(error)) from None

    def text(self, schema: Any) -> str:
        """The schema within another grammar."""
        if not isinstance(schema, dict | bool):
            raise GrammarError("a JSON schema is an object or a boolean")
        bound_patterns(schema)
        rewritten = rewrite(schema)
        self._unchecked.update(dict.fromkeys(rewritten.unchecked))
        return json.dumps(_with_whitespace(rewritten.schema, compact=self._compact))


def _with_whitespace(schema: dict[str, Any] | bool, *, compact: bool) -> dict[str, Any]:
    """The schema, told which whitespace to allow where it does not say so itself."""
    whole = {"allOf": [schema]} if isinstance(schema, bool) else schema
    asked = whole.get("x-guidance")
    if asked is not None and not isinstance(asked, dict):
        raise GrammarError("x-guidance must be an object")
    asked = dict(asked or {})
    if "whitespace_flexible" not in asked and "whitespace_pattern" not in asked:
        asked |= {"whitespace_flexible": False} if compact else {"whitespace_pattern": WHITESPACE}
    return {**whole, "x-guidance": asked}


def _choices(text: str) -> list[str]:
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError as error:
        raise GrammarError(f"a choice is a list of strings: {error}") from None
    if not choices:
        raise GrammarError("there is nothing to choose from")
    return choices


def _literal(text: str) -> str:
    return _META.sub(lambda char: "\\" + char[0], text)


def _lark_of(text: str) -> str:
    try:
        return str(any_to_lark(text))
    except (GbnfToLarkError, ValueError, LookupError, RecursionError) as error:
        raise GrammarError(f"it is not a GBNF grammar: {error}") from None


def structural_tag(text: str) -> StructuralTag:
    try:
        tag = msgspec.json.decode(text, type=StructuralTag)
    except msgspec.MsgspecError as error:
        raise GrammarError(f"a structural tag has structures (begin, schema, end) and triggers: {error}") from None
    if not tag.structures or not tag.triggers or not all(tag.triggers):
        raise GrammarError("a structural tag needs at least one structure and one trigger, none of them empty")
    for structure in tag.structures:
        if not any(structure.begin.startswith(trigger) for trigger in tag.triggers):
            raise GrammarError(f"structure {structure.begin!r} begins with none of the triggers")
    for trigger in tag.triggers:
        if not any(structure.begin.startswith(trigger) for structure in tag.structures):
            raise GrammarError(f"no structure begins with trigger {trigger!r}")
    return tag


def _tagged(tag: StructuralTag, schemas: _Schemas) -> Iterator[str]:
    """Text ends each time with a trigger, or with the output."""
    triggers = sorted(set(tag.triggers), key=len, reverse=True)
    yield "%llguidance {}"
    yield f"start: ({' | '.join(f'tag_{index}' for index in range(len(triggers)))})* text"
    yield "text: TEXT"
    yield r"TEXT: /(.|\n)*/"
    bodies: dict[str, list[str]] = {trigger: [] for trigger in triggers}
    for structure in tag.structures:
        trigger = next(trigger for trigger in triggers if structure.begin.startswith(trigger))
        json_rule = f"%json {schemas.text(structure.schema)}"
        parts = [_quoted(structure.begin[len(trigger) :]), json_rule, _quoted(structure.end)]
        bodies[trigger].append(" ".join(filter(None, parts)))
    for index, trigger in enumerate(triggers):
        yield f"head_{index}[lazy]: TEXT {_quoted(trigger)}"
        yield f"tag_{index}: head_{index} ({' | '.join(bodies[trigger])})"


class _Parts:
    """Writes `Part`s as Lark."""

    def __init__(self, schemas: _Schemas) -> None:
        self._schemas = schemas
        self._heads: dict[str, str] = {}  # texts that end free text, and their lexemes
        self._others: list[dict[str, str]] = []  # grammars in their own right

    def translate(self, text: str) -> str:
        start = self._part(_parsed(text, "part of a grammar"))
        heads = [f"{name}[lazy]: TEXT {_quoted(end)}" for end, name in self._heads.items()]
        rules = ["%llguidance {}", r"TEXT: /(.|\n)*/", *heads, f"start: {start}"]
        return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *self._others]}, ensure_ascii=False)

    def _part(self, part: Any) -> str:
        match part:
            case {"text": str(text)}:
                return _quoted(text) or '""'
            case {"token": int(id)}:
                return f"<[{id}]>"
            case {"json": schema}:
                return f"%json {self._schemas.text(schema)}"
            case {"regex": str(pattern)}:
                return f"/{llguidance.regex_to_lark(pattern, _ASCII)}/"
            case {"free": True}:
                return "TEXT"
            case {"until": str(end)} if end:
                return self._heads.setdefault(end, f"head_{len(self._heads)}")
            case {"seq": [*parts]}:
                return " ".join(map(self._part, parts)) or '""'
            case {"any": [*parts]} if parts:
                return f"( {' | '.join(map(self._part, parts))} )"
            case {"maybe": inner}:
                return f"( {self._part(inner)} )?"
            case {"some": inner}:
                return f"( {self._part(inner)} )*"
            case {"grammar": inner}:
                return self._grammar(msgspec.convert(inner, Grammar))
        raise GrammarError(f"it has a part that is none: {str(part)[:80]}")

    def _grammar(self, grammar: Grammar) -> str:
        match grammar.kind:
            case "json_schema":
                return self._part({"json": _parsed(grammar.text, "JSON schema")})
            case "regex":
                bound_expression(grammar.text)
                return self._part({"regex": grammar.text})
            case "choice":
                return self._part({"any": [{"text": text} for text in _choices(grammar.text)]})
        name = f"other_{len(self._others)}"
        self._others.append({"name": name, "lark_grammar": _text(grammar, self._schemas)})
        return f"@{name}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
