"""Small schemas of every keyword, and values that they may or may not accept, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "kind"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 5, 1.5, -3, "", "a", "b", "ab", "xyz"])
TYPES = st.sampled_from(["null", "boolean", "object", "array", "integer", "number", "string"])
PATTERNS = st.sampled_from(["^a", "b$", "^[ab]*$", "^(?!a)[a-z]*$", "^(?!.*bb).+$", "a(?=b)"])
COUNTS = st.integers(0, 3)

VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(NAMES, inner, max_size=2)
    names = st.lists(NAMES, max_size=2, unique=True)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "const": SCALARS,
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "minimum": st.integers(-2, 3),
            "exclusiveMaximum": st.integers(-2, 6),
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minLength": COUNTS,
            "maxLength": COUNTS,
            "pattern": PATTERNS,
            "minItems": COUNTS,
            "maxItems": COUNTS,
            "items": inner,
            "prefixItems": several,
            "contains": inner,
            "minContains": COUNTS,
            "maxContains": COUNTS,
            "uniqueItems": st.booleans(),
            "unevaluatedItems": inner,
            "properties": named,
            "required": names,
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "additionalProperties": inner,
            "propertyNames": inner,
            "dependentRequired": st.dictionaries(NAMES, names, max_size=2),
            "dependentSchemas": named,
            "minProperties": COUNTS,
            "maxProperties": COUNTS,
            "unevaluatedProperties": inner,
            "allOf": several,
            "anyOf": several,
            "oneOf": several,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
        },
    )


def _few(keywords: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Most schemas have a few keywords; with many hardly any value is accepted."""
    if len(keywords) <= 3:
        return st.just(keywords)
    return st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4, unique=True).map(
        lambda kept: {key: keywords[key] for key in kept}
    )


SCHEMAS = st.recursive(
    st.booleans() | TYPES.map(lambda type: {"type": type}) | SCALARS.map(lambda value: {"const": value}),
    lambda inner: _keywords(inner).flatmap(_few),
    max_leaves=8,
)
