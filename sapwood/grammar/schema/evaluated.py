"""Which parts of a value a schema says something about, whatever the value: what `unevaluated...` leaves alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sapwood.grammar.schema.document import Document, Schema

_OWN = {
    "unevaluatedProperties": ("properties", "patternProperties", "additionalProperties"),
    "unevaluatedItems": ("prefixItems", "items", "contains"),
}
_MOST_DEPTH = 16


@dataclass
class Parts:
    """Names, expressions of names, the first items, or everything."""

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    num_items: int = 0
    everything: bool = False


def evaluated(document: Document, schema: dict[str, Any], key: str) -> Parts | None:
    """The parts that `key` of a schema does not speak about; None where they depend on the value."""
    parts = Parts()
    return parts if _add(document, schema, key, parts, 0) else None


def _add(document: Document, schema: Schema, key: str, parts: Parts, depth: int) -> bool:
    if isinstance(schema, bool):
        return True
    words = document.keywords(schema)
    if depth > _MOST_DEPTH or "$dynamicRef" in words:
        return False
    if key == "unevaluatedProperties":
        parts.names |= dict.fromkeys(words.get("properties", ()))
        parts.patterns |= dict.fromkeys(words.get("patternProperties", ()))
        parts.everything |= "additionalProperties" in words
    else:
        parts.num_items = max(parts.num_items, len(words.get("prefixItems", ())))
        parts.everything |= "items" in words
        if "contains" in words and not parts.everything:
            return False
    parts.everything |= depth > 0 and key in words
    always = [*words.get("allOf", ()), *([document.resolve(schema)] if "$ref" in words else ())]
    if not all(_add(document, one, key, parts, depth + 1) for one in always):
        return False
    at_times = [words[name] for name in ("if", "then", "else") if name in words]
    at_times += [*words.get("anyOf", ()), *words.get("oneOf", ()), *words.get("dependentSchemas", {}).values()]
    return parts.everything or all(_nothing(document, one, key, depth + 1) for one in at_times)


def _nothing(document: Document, schema: Schema, key: str, depth: int) -> bool:
    """Whether a schema says nothing about a value's parts."""
    parts = Parts()
    return _add(document, schema, key, parts, depth) and parts == Parts()
