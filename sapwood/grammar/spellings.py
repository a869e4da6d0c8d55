"""What an output has to match, in the spellings of OpenAI, vLLM and SGLang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar

Schema = dict[str, Any] | bool | str


class Asked(NamedTuple):
    """A grammar, and the field that asks for it as the caller spelled it.

    `strict`: it is refused if its outputs would have to be checked at the end.
    """

    grammar: Grammar
    param: str
    strict: bool = False


class NamedSchema(msgspec.Struct, kw_only=True):
    """`strict`: a schema that a grammar cannot follow as a whole is refused."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """OpenAI's, with llama.cpp's `schema` of a json_object and SGLang's structural tags."""

    type: str
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | bool | None = None
    structures: list[Any] | None = None
    triggers: list[Any] | None = None

    def asked(self, at: str) -> Asked | None:
        match self.type:
            case "text":
                return None
            case "json_object" if self.schema is not None:
                return Asked(_json(self.schema), f"{at}.schema")
            case "json_object":
                return Asked(Grammar.json(), at)
            case "json_schema":
                if self.json_schema is None:
                    raise RequestError(f"{at}.json_schema is missing.", param=f"{at}.json_schema")
                param = f"{at}.json_schema.schema"
                if self.json_schema.schema is None:
                    raise RequestError(f"{param} is missing.", param=param)
                return Asked(_json(self.json_schema.schema), param, bool(self.json_schema.strict))
            case "structural_tag":
                return Asked(_tag({"structures": self.structures, "triggers": self.triggers}), at)
        raise RequestError(
            f"{at}.type must be text, json_object, json_schema or structural_tag, got {self.type!r}.",
            param=f"{at}.type",
        )


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's; one of the first six. The others say more about JSON."""

    json: Schema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: dict[str, Any] | str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None

    def all_asked(self, at: str) -> Iterator[Asked]:
        if self.json is not None:
            yield Asked(self._styled(self.json, f"{at}.json"), f"{at}.json")
        if self.json_object:
            yield Asked(self._styled({"type": "object"}, at), f"{at}.json_object")
        if self.regex is not None:
            yield Asked(Grammar.regex(self.regex), f"{at}.regex")
        if self.choice is not None:
            yield Asked(Grammar.choice(self.choice), f"{at}.choice")
        if self.grammar is not None:
            yield Asked(Grammar.rules(self.grammar), f"{at}.grammar")
        if self.structural_tag is not None:
            yield Asked(_tag(self.structural_tag), f"{at}.structural_tag")

    def _styled(self, schema: Schema, param: str) -> Grammar:
        options: dict[str, Any] = {}
        if self.disable_any_whitespace:
            options["whitespace_flexible"] = False
        if self.whitespace_pattern is not None:
            options["whitespace_pattern"] = self.whitespace_pattern
        if not options and not self.disable_additional_properties:
            return _json(schema)
        whole = _parsed(schema, param)
        if self.disable_additional_properties:
            try:
                whole = _closed(whole)
            except RecursionError:
                raise RequestError(f"{param}: the schema is nested too deeply.", param=param) from None
        if not options:
            return _json(whole)
        if isinstance(whole, bool):
            whole = {"allOf": [whole]}
        asked = whole.get("x-guidance")
        if asked is not None and not isinstance(asked, dict):
            raise RequestError(f"{param}.x-guidance: it is an object.", param=param)
        return _json({**whole, "x-guidance": {**(asked or {}), **options}})


class Structured(msgspec.Struct, kw_only=True):
    """The fields of a completion's body that say what its output has to match; at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    json_schema: Schema | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: dict[str, Any] | str | None = None

    def asked(self) -> Asked | None:
        """What is asked for, not yet known to be possible. Raises RequestError for two things at once."""
        return one_of(self._all())

    def _all(self) -> Iterator[Asked]:
        if self.response_format is not None and (asked := self.response_format.asked("response_format")):
            yield asked
        if self.structured_outputs is not None:
            yield from self.structured_outputs.all_asked("structured_outputs")
        guided = StructuredOutputs(
            json=self.guided_json,
            regex=self.guided_regex,
            choice=self.guided_choice,
            grammar=self.guided_grammar,
            whitespace_pattern=self.guided_whitespace_pattern,
        )
        for asked in guided.all_asked("guided"):
            yield asked._replace(param=asked.param.replace(".", "_"))
        yield from native(self.json_schema, self.regex, self.ebnf, self.structural_tag)


def native(
    json_schema: Schema | None, regex: str | None, ebnf: str | None, structural_tag: dict[str, Any] | str | None
) -> Iterator[Asked]:
    """SGLang's fields."""
    if json_schema is not None:
        yield Asked(_json(json_schema), "json_schema")
    if regex is not None:
        yield Asked(Grammar.regex(regex), "regex")
    if ebnf is not None:
        yield Asked(Grammar.rules(ebnf), "ebnf")
    if structural_tag is not None:
        yield Asked(_tag(structural_tag), "structural_tag")


def one_of(asked: Iterator[Asked]) -> Asked | None:
    """The only one, None if there is none. Raises RequestError naming two."""
    first, second = next(asked, None), next(asked, None)
    if first is not None and second is not None:
        raise RequestError(
            f"{first.param} and {second.param} exclude each other: each says what the output has to match.",
            param=second.param,
        )
    return first


def _json(schema: Schema) -> Grammar:
    return Grammar.json(schema)


def _tag(tag: dict[str, Any] | str) -> Grammar:
    return Grammar(kind="structural_tag", text=tag if isinstance(tag, str) else json.dumps(tag, ensure_ascii=False))


def _parsed(schema: Schema, param: str) -> dict[str, Any] | bool:
    if not isinstance(schema, str):
        return schema
    try:
        whole = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param}: it is not JSON: {error}.", param=param) from None
    if not isinstance(whole, dict | bool):
        raise RequestError(f"{param}: a JSON schema is an object or a boolean.", param=param)
    return whole


def _closed(schema: Any) -> Any:
    """The schema with no properties in any object but those that it names."""
    match schema:
        case dict():
            inner = {key: _closed(value) for key, value in schema.items()}
            if "properties" in inner or inner.get("type") == "object":
                inner.setdefault("additionalProperties", False)
            return inner
        case list():
            return [_closed(one) for one in schema]
    return schema
