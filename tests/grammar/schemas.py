"""Schemas of many kinds. Strings and arrays are bounded where a small model would not find an end."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(required: bool = True, **properties: Any) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
        "additionalProperties": False,
    }


def arr(items: Any, low: int = 0, high: int = 4) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


STRING: Schema = {"type": "string", "maxLength": 24}
INTEGER: Schema = {"type": "integer", "minimum": -1000, "maximum": 1000}
NUMBER: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BOOL: Schema = {"type": "boolean"}

SCHEMAS: dict[str, Schema] = {
    "flat": obj(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 150}, member=BOOL),
    "nested": obj(user=obj(name=STRING, address=obj(street=STRING, city=STRING)), id=INTEGER),
    "nested deeply": obj(a=obj(b=obj(c=obj(d=obj(e=obj(f=INTEGER)))))),
    "optional": obj(False, a=STRING, b=INTEGER, c=BOOL, d={"type": "null"}),
    "some required": obj(False, a=STRING, b=INTEGER) | {"required": ["b"]},
    "enum of strings": {"enum": ["red", "green", "blue", "ultramarine"]},
    "enum of anything": {"enum": [1, "one", None, True, 1.5, [1, 2], {"a": "b"}]},
    "const": obj(kind={"const": "cat"}, version={"const": 3}, tags={"const": ["a", "b"]}),
    "boolean": {"type": "boolean"},
    "null or boolean": {"type": ["null", "boolean"]},
    "integer range": {"type": "integer", "minimum": 17, "maximum": 4242},
    "exclusive range": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
    "negative": {"type": "integer", "minimum": -99, "maximum": -10},
    "number range": {"type": "number", "minimum": 0.25, "maximum": 0.75},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999},
    "bounded array": arr(INTEGER, 2, 5),
    "array of objects": arr(obj(x=INTEGER, y=INTEGER), 1, 3),
    "array of arrays": arr(arr(BOOL, 1, 3), 1, 3),
    "tuple": {"type": "array", "prefixItems": [STRING, INTEGER, BOOL], "items": False, "minItems": 3},
    "tuple and rest": {"type": "array", "prefixItems": [BOOL], "items": INTEGER, "minItems": 2, "maxItems": 4},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    "pattern unanchored": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 20},
    "pattern with classes": {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,3}){3}$"},
    "lengths": {"type": "string", "minLength": 5, "maxLength": 9},
    "date": obj(day={"type": "string", "format": "date"}),
    "date-time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "uuid": obj(id={"type": "string", "format": "uuid"}),
    "ipv4": {"type": "string", "format": "ipv4"},
    "anyOf": {"anyOf": [STRING, INTEGER, {"type": "null"}]},
    "anyOf objects": {"anyOf": [obj(cat=STRING), obj(dog=INTEGER, breed=STRING)]},
    "oneOf types": {"oneOf": [STRING, arr(INTEGER, 0, 2)]},
    "oneOf discriminated": {"oneOf": [obj(kind={"const": "a"}, x=INTEGER), obj(kind={"const": "b"}, y=BOOL)]},
    "allOf": {"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                        {"type": "object", "properties": {"b": BOOL}, "required": ["b"]}],
              "maxProperties": 3},
    "$ref": {"$defs": {"point": obj(x=NUMBER, y=NUMBER)}, **obj(start={"$ref": "#/$defs/point"},
                                                                end={"$ref": "#/$defs/point"})},
    "recursive": {"$defs": {"node": obj(value=INTEGER, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]})},
                  "$ref": "#/$defs/node"},
    "tree": {"$defs": {"tree": obj(v=BOOL, kids=arr({"$ref": "#/$defs/tree"}, 0, 1))}, "$ref": "#/$defs/tree"},
    "unicode keys": obj(**{"имя": STRING, "年齢": INTEGER, "größe": NUMBER}),
    "unicode values": {"enum": ["naïve", "日本語", "🙂🙃", "Ω≈ç", "שלום"]},
    "escapes": obj(**{'a "quoted" key': {"enum": ['line\nbreak', "tab\t", "back\\slash", '"']}}),
    "additionalProperties": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "patternProperties": {"type": "object", "patternProperties": {"^k[0-9]$": BOOL}, "additionalProperties": False,
                          "minProperties": 1, "maxProperties": 2},
    "annotated": obj(a=INTEGER | {"title": "A", "description": "an a", "default": 3, "examples": [1]}) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d"},
    "pydantic optional": obj(a={"anyOf": [INTEGER, {"type": "null"}], "default": None}),
    "function call": obj(name={"enum": ["search", "open"]}, arguments=obj(query=STRING, limit={
        "type": "integer", "minimum": 1, "maximum": 50})),
    "extraction": obj(people=arr(obj(name=STRING, role={"enum": ["author", "editor"]}), 1, 2), year={
        "type": "integer", "minimum": 1900, "maximum": 2100}, summary={"type": "string", "maxLength": 60}),
    "scores": obj(scores=arr(NUMBER, 3, 3), winner={"type": "integer", "minimum": 0, "maximum": 2}),
    "long key": obj(**{"a_rather_long_name_of_a_property_that_takes_many_tokens": BOOL}),
}  # fmt: skip
