"""Schemas rewritten, and values checked, against the jsonschema package."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from sapwood.grammar.schema import SchemaCheck, rewrite
from tests.grammar.strategies import SCHEMAS, VALUES

jsonschema = pytest.importorskip("jsonschema")


def valid(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@hypothesis.given(SCHEMAS, st.lists(VALUES, min_size=4, max_size=12))
@hypothesis.settings(max_examples=400, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_a_rewriting_keeps_the_meaning(schema: Any, values: list[Any]) -> None:
    """It accepts nothing that the schema refuses, unless it says that something is left to check."""
    check, rewritten = SchemaCheck(schema), rewrite(schema)
    for value in values:
        want, kept = valid(schema, value), valid(rewritten.schema, value)
        assert check.value(value).valid == want, "the check at the end"
        assert kept or not want, "a value is lost"
        assert want or not kept or rewritten.unchecked, "a value was refused"
