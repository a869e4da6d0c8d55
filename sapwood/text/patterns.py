"""Regular expressions looked for in text that arrives in pieces, in time that grows with the text alone.

An expression is a small machine whose states are all tried side by side, so that no expression is slow; what would need
to look back or ahead is refused. The syntax is Python's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from sapwood.base.errors import RequestError
from sapwood.text.stops import Match

MAX_STATES = 256  # of all expressions of one output: what one character may cost
_MAX_CHARS = 1024  # of one expression

Test = Callable[[str], bool]

_CATEGORIES: dict[str, Test] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda char: char.isalnum() or char == "_",
}


class Patterns:
    """A kind of stop: the first match to be completed; of those that end at the same character, the one that begins first."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises RequestError, about stop_regex, for what is no expression or cannot be looked for."""
        self._machine = _Machine()
        self._ends: dict[int, str] = {}
        self._starts: list[int] = []
        for pattern in patterns:
            begin, end = self._machine.add(pattern)
            first = self._machine.spread({begin: 0})
            if end in first:
                raise _refused(pattern, "matches the empty text")
            self._starts += first
            self._ends[end] = pattern
        self._at = 0
        self._live: dict[int, int] = {}  # state to where its match began

    @property
    def held(self) -> int:
        """Where the earliest match that may still become complete begins."""
        return min(self._live.values(), default=self._at)

    def push(self, text: str) -> Match | None:
        """Take more text. After a match there must not be any."""
        for char in text:
            reached: dict[int, int] = {}
            for state, start in [*self._live.items(), *((state, self._at) for state in self._starts)]:
                for test, end in self._machine.steps[state]:
                    if start < reached.get(end, self._at + 1) and test(char):
                        reached[end] = start
            self._at += 1
            self._live = self._machine.spread(reached)
            found = [Match(self._at, self._live[end], name) for end, name in self._ends.items() if end in self._live]
            if found:
                return min(found)
        return None


class _Machine:
    """States with steps on a character and moves without one."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[Test, int]]] = []
        self._moves: list[list[int]] = []

    def add(self, pattern: str) -> tuple[int, int]:
        """Build an expression; return its first and its last state."""
        if len(pattern) > _MAX_CHARS:
            raise _refused(pattern[:32] + "...", f"is longer than {_MAX_CHARS} characters")
        try:
            tree = _parser.parse(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise _refused(pattern, f"cannot be read: {error}") from None
        begin = self._state(pattern)
        return begin, self._sequence(tree, begin, tree.state.flags, pattern)

    def spread(self, reached: Mapping[int, int]) -> dict[int, int]:
        """The same states and those that are reached from them without a character, each with the earliest start."""
        starts: dict[int, int] = {}
        for state in sorted(reached, key=reached.__getitem__):
            pending = [state]
            while pending:
                one = pending.pop()
                if one not in starts:
                    starts[one] = reached[state]
                    pending += self._moves[one]
        return starts

    def _state(self, pattern: str) -> int:
        if len(self.steps) == MAX_STATES:
            raise _refused(pattern, f"has too many states with its repetitions written out; {MAX_STATES} are allowed")
        self.steps.append([])
        self._moves.append([])
        return len(self.steps) - 1

    def _sequence(self, items: Any, at: int, flags: int, pattern: str) -> int:
        for operation, value in items:
            at = self._item(str(operation), value, at, flags, pattern)
        return at

    def _item(self, operation: str, value: Any, at: int, flags: int, pattern: str) -> int:
        match operation:
            case "BRANCH":
                return self._joined([self._sequence(one, at, flags, pattern) for one in value[1]], pattern)
            case "SUBPATTERN":
                _, on, off, items = value
                return self._sequence(items, at, (flags | on) & ~off, pattern)
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeated(value, at, flags, pattern)
        test = _test(operation, value, flags)
        if test is None:
            raise _refused(pattern, f"has {_words(operation, value)}, which cannot be looked for in growing text")
        end = self._state(pattern)
        self.steps[at].append((test, end))
        return end

    def _repeated(self, value: Any, at: int, flags: int, pattern: str) -> int:
        least, most, items = value
        for _ in range(least):
            once = self._sequence(items, at, flags, pattern)
            if once == at:  # it has no characters, however often
                return at
            at = once
        if most is _parser.MAXREPEAT:
            loop = self._joined([at], pattern)
            self._moves[self._sequence(items, loop, flags, pattern)].append(loop)
            return self._joined([loop], pattern)
        ways = [at]
        for _ in range(most - least):
            at = self._sequence(items, at, flags, pattern)
            if at == ways[-1]:
                break
            ways.append(at)
        return self._joined(ways, pattern)

    def _joined(self, ways: Sequence[int], pattern: str) -> int:
        """A new state that is reached from each of some."""
        end = self._state(pattern)
        for way in ways:
            self._moves[way].append(end)
        return end


def _test(operation: str, value: Any, flags: int) -> Test | None:
    """What one character has to be; None for anything but a character."""
    fold = bool(flags & re.IGNORECASE)
    match operation:
        case "ANY":
            return (lambda char: True) if flags & re.DOTALL else (lambda char: char != "\n")
        case "LITERAL":
            return _folding(lambda char: ord(char) == value, fold)
        case "NOT_LITERAL":
            same = _folding(lambda char: ord(char) == value, fold)
            return lambda char: not same(char)
        case "IN":
            return _one_of(value, flags)
    return None


def _one_of(items: Any, flags: int) -> Test:
    negated = str(items[0][0]) == "NEGATE"
    tests = [_member(str(kind), value, flags) for kind, value in items[negated:]]
    among = _folding(lambda char: any(test(char) for test in tests), bool(flags & re.IGNORECASE))
    return lambda char: among(char) != negated


def _member(kind: str, value: Any, flags: int) -> Test:
    match kind:
        case "LITERAL":
            return lambda char: ord(char) == value
        case "RANGE":
            low, high = value
            return lambda char: low <= ord(char) <= high
    name = str(value).removeprefix("CATEGORY_")
    test, negated = _CATEGORIES[name.removeprefix("NOT_")], name.startswith("NOT_")
    if flags & re.ASCII:
        return lambda char: (test(char) and char.isascii()) != negated
    return lambda char: test(char) != negated


def _folding(test: Test, fold: bool) -> Test:
    if not fold:
        return test
    return lambda char: any(test(one) for one in {char, char.lower(), char.upper()} if len(one) == 1)


def _words(operation: str, value: Any) -> str:
    match operation:
        case "AT":
            return "an anchor (^, $, \\b and the like)"
        case "ASSERT" | "ASSERT_NOT":
            return "a look ahead or behind"
        case "GROUPREF" | "GROUPREF_EXISTS":
            return "a reference to a group"
    return "an atomic group or a possessive repetition"


def _refused(pattern: str, why: str) -> RequestError:
    return RequestError(f"stop_regex: {pattern!r} {why}.", param="stop_regex")
