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
_PLAIN = re.compile(r"[^\\\[\](){}|*+?.\n]+")
_LITERAL = re.compile(r"\\[^dDwWsSpPbB]|\[(?:[^\]\\^]|\\[^dDwWsSpP])\]|[^\\\[]", re.DOTALL)
_QUIET = re.compile(r"\?(?:P?<\w*>|\w*:)")  # begins a group, and says nothing of the text
_REMARKS = ("description", "title", "$comment", "examples", "default")


def prescribes_much(grammar: Grammar) -> bool:
    """Whether there is a stretch of more than MOST_TEXT bytes in it, about: one that cannot be read is somebody else's to refuse."""
    text = grammar.text
    if grammar.kind in ("regex", "lark", "gbnf"):
        return _stretch(text) > MOST_TEXT
    try:
        texts = [*_strings(json.loads(text))]
    except (ValueError, RecursionError):
        return False
    return any(_num_bytes(one) > MOST_TEXT or (_COUNT.search(one) and _stretch(one) > MOST_TEXT) for one in texts)


def _stretch(text: str) -> int:
    """The bytes of the longest stretch without a choice that an expression, or rules, prescribe, or more than MOST_TEXT: about, and
    rather too many."""
    outer: list[tuple[int, bool]] = []
    run = most = last = at = 0  # of this stretch, of the longest, of the last part; where we are
    free = False  # there is a choice in this group
    while at < len(text):
        found = None
        if found := _PLAIN.match(text, at):
            run, last = run + _num_bytes(found[0]), _num_bytes(found[0][-1])
        elif found := _COUNT.match(text, at):
            least = int(found[1])
            run += last * (least - 1)
            last *= least
            if found[2] is not None and found[2] != found[1]:
                most, run, last, free = max(most, run), 0, 0, True
        elif text[at] == "(":
            outer.append((run, free))
            run, free = 0, False
            found = _QUIET.match(text, at + 1)
        elif text[at] == ")" and outer:
            most, last = max(most, run), 0 if free else run
            before, outer_free = outer.pop()
            run, free = (0, True) if free else (before + run, outer_free)
        elif text[at] not in "*+?|.\n" and (found := _ONE.match(text, at)) and _LITERAL.fullmatch(found[0]):
            run, last = run + 1, 1
        else:
            run, last, free = 0, 0, True
        most = max(most, run)
        if most > MOST_TEXT:
            break
        at = found.end() if found else at + 1
    return most


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


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
