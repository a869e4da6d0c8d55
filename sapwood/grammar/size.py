"""How much text a grammar prescribes in one stretch, and how much an expression repeats, found before it is compiled.

Where llguidance looks for tokens that are forced, it takes time with the length of what is left of a prescribed stretch; and
expressions that repeat repetitions are a few bytes that become millions of states. Either would hold up everybody who runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar

MOST_TEXT = 4 << 10  # bytes of one stretch in which forced tokens are looked for
MOST_REPEATS = 20_000  # characters that an expression's counted repetitions come to
_COUNT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_ONE = re.compile(r"\\p\{\w*\}|\\.|\[(?:[^\]\\]|\\.)*\]|.", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_REMARKS = ("description", "title", "$comment", "examples", "default")


def prescribes_much(grammar: Grammar) -> bool:
    """Whether it has a literal of more than MOST_TEXT bytes, about: one that cannot be read is somebody else's to refuse."""
    text = grammar.text
    if len(text) <= MOST_TEXT // 4:  # characters have four bytes at most
        return False
    if grammar.kind == "regex":
        return len(text) > MOST_TEXT
    if grammar.kind in ("lark", "gbnf"):
        texts = iter(_QUOTED.findall(text))
    else:
        try:
            texts = _strings(json.loads(text))
        except (ValueError, RecursionError):
            return False
    return any(len(one.encode("utf-8", "surrogatepass")) > MOST_TEXT for one in texts)


def _strings(value: Any) -> Iterator[str]:
    """All strings in it that say something about outputs."""
    for inner in _values(value):
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, dict):
            yield from inner


def _values(value: Any) -> Iterator[Any]:
    """It and all within it that say something about outputs. Not recursive: schemas may be deep."""
    left = [value]
    while left:
        inner = left.pop()
        yield inner
        if isinstance(inner, list):
            left.extend(inner)
        elif isinstance(inner, dict):
            left.extend(one for key, one in inner.items() if key not in _REMARKS)


def bound_expression(text: str) -> None:
    """Raises GrammarError for an expression that repeats too much."""
    if _length(text) > MOST_REPEATS:
        raise GrammarError(
            f"with its repetitions it comes to more than {MOST_REPEATS} characters; repeat less often, or use + or *"
        )


def bound_patterns(schema: Any) -> None:
    """The same for the expressions of a JSON schema."""
    for value in _values(schema):
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("pattern"), str):
            bound_expression(value["pattern"])
        if isinstance(value.get("patternProperties"), dict):
            for pattern in value["patternProperties"]:
                bound_expression(pattern)


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
