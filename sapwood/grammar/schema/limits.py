"""What llguidance takes of numbers, expressions and counts, and what is put in the place of the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations

import llguidance

from sapwood.grammar.schema.document import TYPES, Schema

FARTHEST = 9e18  # the largest bound
FARTHEST_WHOLE = 2**63 - 1024  # of whole numbers
LONGEST = 2**31  # no output has so many characters
MOST_DIGITS = 8  # of a divisor
_CLOSEST = 1e-30  # the smallest bound
_MOST_COUNTED = 64  # ways to have so many properties

NO_OBJECT: Schema = {"type": [type for type in TYPES if type != "object"]}
NO_ARRAY: Schema = {"type": [type for type in TYPES if type != "array"]}


def inside(bound: float) -> float:
    """The largest float that is not above an upper bound, of those that are zero or not too close to it."""
    if abs(bound) < _CLOSEST:
        return bound if bound == 0 else 0 if bound > 0 else -_CLOSEST
    rounded = float(bound)
    return bound if rounded == bound else rounded if rounded < bound else math.nextafter(rounded, -math.inf)


def digits(number: float) -> int:
    return len(Decimal(repr(number)).as_tuple().digits)


def counted(names: Sequence[str], key: str, count: int, closed: bool) -> list[Schema] | None:
    """The cases of an object that has at least or at most so many of some names, apart from required ones."""
    if key == "maxProperties" and closed:
        if count < 0:
            return [NO_OBJECT]
        if math.comb(len(names), min(count, len(names))) <= _MOST_COUNTED:
            return [
                {"properties": {name: False for name in names if name not in kept}}
                for kept in combinations(names, min(count, len(names)))
            ]
    elif key == "minProperties" and closed:
        if count > len(names):
            return [NO_OBJECT]
        if math.comb(len(names), count) <= _MOST_COUNTED:
            return [{"required": list(needed)} for needed in combinations(names, count)]
    elif key == "minProperties" and count == 1:
        others = {"properties": dict.fromkeys(names, False), "minProperties": 1}
        return [*({"required": [name]} for name in names), others]
    return None


def problem(schema: Schema) -> str:
    """What llguidance says against a schema, nothing if it takes it."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return str(llguidance.LLMatcher.validate_grammar(grammar))
