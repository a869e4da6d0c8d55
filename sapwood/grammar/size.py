"""How much text a grammar prescribes in one stretch, found before it is compiled.

A mask inside a prescribed stretch takes time with the length of what is left of it, and expressions that repeat
repetitions are a few bytes that become millions of states. Whoever sends such a thing would hold up everybody who runs.
"""

from __future__ import annotations

import re
from typing import Any

from sapwood.base.errors import GrammarError

MOST_TEXT = 16 << 10  # bytes of one literal: more tokens than most contexts hold
MOST_REPEATS = 20_000  # characters that an expression's counted repetitions come to
_COUNT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_ONE = re.compile(r"\\p\{\w*\}|\\.|\[(?:[^\]\\]|\\.)*\]|.", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def bound_text(text: str, what: str) -> None:
    """Raises GrammarError for a literal that is too long; `what` it is."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MOST_TEXT:
        raise GrammarError(f"{what} has {size} bytes; at most {MOST_TEXT} may be prescribed in one stretch")


def bound_expression(text: str) -> None:
    """Raises GrammarError for an expression that repeats too much, or prescribes too much."""
    if _length(text) > MOST_REPEATS:
        raise GrammarError(
            f"with its repetitions it comes to more than {MOST_REPEATS} characters; repeat less often, or use + or *"
        )


def bound_rules(text: str) -> None:
    """The same for the literals of Lark and GBNF."""
    for quoted in _QUOTED.findall(text):
        bound_text(quoted, "a literal")


def bound_schema(schema: Any) -> None:
    """The same for the texts that a JSON schema prescribes, and its expressions. Not recursive: schemas may be deep."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, str):
            bound_text(value, "a text of the schema")
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                bound_text(key, "a name of the schema")
                if key == "pattern" and isinstance(inner, str):
                    bound_expression(inner)
                elif key == "patternProperties" and isinstance(inner, dict):
                    for pattern in inner:
                        bound_expression(pattern)
                if key not in ("description", "title", "$comment", "examples", "default"):
                    left.append(inner)


def _length(text: str) -> int:
    """The most characters that the expression's counted repetitions come to; one without bound counts as often as it has to.

    Reads groups, alternatives, classes and counts of any dialect; whoever compiles it says what is wrong with it.
    """
    outer: list[tuple[int, int]] = []
    here = most = last = at = 0  # of this alternative, of those before it, of the last part; where we are
    while at < len(text):
        if found := _COUNT.match(text, at):
            count = max(int(found[1]), int(found[2] or 0), 1)
            here, last = here + last * (count - 1), last * count
        elif text[at] == "(":
            outer.append((here, most))
            here = most = last = 0
        elif text[at] == ")" and outer:
            last = max(here, most)
            here, most = outer.pop()
            here += last
        elif text[at] == "|":
            here, most, last = 0, max(here, most), 0
        elif text[at] not in "*+?":
            found = _ONE.match(text, at)
            here, last = here + 1, 1
        at = found.end() if found else at + 1
        if here > MOST_REPEATS:
            break
    return max(here, most)
