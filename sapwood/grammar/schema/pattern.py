"""Regular expressions as JSON schemas have them, look-around included, matched in a bounded number of steps.

Python's own `re` may take a time that is exponential in the text, and cannot be stopped. Here each place of the
expression is tried at each place of the text once at most.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from sapwood.base.errors import GrammarError

Spend = Callable[[int], None]
"""Takes so many steps off a budget, and raises when there are none left."""

_MOST = 1000  # of a repetition, as in other engines


@dataclass(frozen=True, eq=False)
class Chars:
    """One character of a set; `text` is how the expression writes it."""

    has: Callable[[str], bool]
    text: str


@dataclass(frozen=True, eq=False)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class OneOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    part: Node
    low: int
    high: int | None


@dataclass(frozen=True, eq=False)
class Edge:
    """A place: "^" or "$" of the text, "b" or "B" of a word."""

    kind: str


@dataclass(frozen=True, eq=False)
class Look:
    part: Node
    ahead: bool
    wanted: bool
    text: str


Node = Chars | Sequence | OneOf | Repeat | Edge | Look


@dataclass(frozen=True, eq=False)
class Pattern:
    """An expression. `regular` is False where a grammar cannot follow it: look-around, edges of words."""

    root: Node
    regular: bool

    def found_in(self, text: str, spend: Spend) -> bool:
        """Whether it matches somewhere."""
        matching = _Matching(text, spend)
        return any(matching.ends(self.root, at) for at in range(len(text) + 1))


def pattern_of(text: str) -> Pattern:
    """Read an expression. Raises GrammarError for what is wrong or not known here."""
    parser = _Parser(text)
    try:
        root = parser.whole()
    except (IndexError, ValueError, OverflowError, RecursionError):
        raise GrammarError(f"pattern {text[:80]!r} cannot be read") from None
    return Pattern(root, parser.regular)


class _Matching:
    def __init__(self, text: str, spend: Spend) -> None:
        self._text = text
        self._spend = spend
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, node: Node, at: int) -> frozenset[int]:
        """Where a match that begins at `at` may end."""
        if isinstance(node, Chars):
            return frozenset((at + 1,)) if at < len(self._text) and node.has(self._text[at]) else frozenset()
        key = (id(node), at)
        known = self._known.get(key)
        if known is None:
            self._spend(1)
            known = self._known[key] = frozenset(self._ends(node, at))
        return known

    def _ends(self, node: Node, at: int) -> set[int] | frozenset[int]:
        match node:
            case Sequence(parts):
                places: set[int] | frozenset[int] = {at}
                for part in parts:
                    places = self._from(part, places)
                return places
            case OneOf(parts):
                return {end for part in parts for end in self.ends(part, at)}
            case Repeat():
                return self._repeated(node, at)
            case Edge(kind):
                return {at} if self._edge(kind, at) else set()
            case Look(part, ahead, wanted):
                if ahead:
                    seen = bool(self.ends(part, at))
                else:
                    seen = any(at in self.ends(part, begin) for begin in range(at + 1))
                return {at} if seen == wanted else set()
        raise AssertionError(node)

    def _from(self, node: Node, places: set[int] | frozenset[int]) -> set[int]:
        self._spend(len(places))
        return {end for place in places for end in self.ends(node, place)}

    def _repeated(self, node: Repeat, at: int) -> set[int]:
        places: set[int] = {at}
        for _ in range(node.low):
            places = self._from(node.part, places)
        found, new, times = set(places), places, node.low
        while new and (node.high is None or times < node.high):
            new = self._from(node.part, new) - found
            found |= new
            times += 1
        return found

    def _edge(self, kind: str, at: int) -> bool:
        if kind in "^$":
            return at == (0 if kind == "^" else len(self._text))
        before = at > 0 and _word(self._text[at - 1])
        behind = at < len(self._text) and _word(self._text[at])
        return (before != behind) == (kind == "b")


class _Parser:
    _NAMED: ClassVar[dict[str, str]] = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.regular = True

    def whole(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise ValueError("unopened group")
        return node

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _choice(self) -> Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else OneOf(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeats(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeats(self, node: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return node
        self._take("?")
        if isinstance(node, Edge | Look) or self._bounds() is not None or max(bounds[0], bounds[1] or 0) > _MOST:
            raise ValueError("nothing to repeat")
        return Repeat(node, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._take(sign):
                return low, high
        end = self._text.find("}", self._at)
        if not self._text.startswith("{", self._at) or end < 0:
            return None
        first, comma, last = self._text[self._at + 1 : end].partition(",")
        if not (first.isdecimal() and (not last or last.isdecimal())):
            return None
        self._at = end + 1
        return int(first), (int(last) if last else None) if comma else int(first)

    def _atom(self) -> Node:
        begin = self._at
        char = self._text[self._at]
        self._at += 1
        match char:
            case "(":
                return self._group(begin)
            case "[":
                return self._chars(begin)
            case "\\":
                return self._escaped(begin)
            case "^" | "$":
                return Edge(char)
            case ".":
                return Chars(lambda one: one != "\n", char)
            case "*" | "+" | "?":
                raise ValueError("nothing to repeat")
        return Chars(char.__eq__, char)

    def _group(self, begin: int) -> Node:
        for sign, ahead, wanted in (
            ("?=", True, True),
            ("?!", True, False),
            ("?<=", False, True),
            ("?<!", False, False),
        ):
            if self._take(sign):
                self.regular = False
                return Look(self._closed(), ahead, wanted, self._text[begin : self._at])
        if self._take("?<") or self._take("?P<"):
            self._at = self._text.index(">", self._at) + 1
        elif not self._take("?:") and self._text.startswith("?", self._at):
            raise ValueError("an unknown group")
        return self._closed()

    def _closed(self) -> Node:
        node = self._choice()
        if not self._take(")"):
            raise ValueError("unclosed group")
        return node

    def _escaped(self, begin: int) -> Node:
        char = self._text[self._at]
        if char in "bBAZz":
            self._at += 1
            self.regular &= char not in "bB"
            return Edge({"A": "^", "Z": "$", "z": "$"}.get(char, char))
        if char in "123456789k":
            raise ValueError("a reference back")
        has, _ = self._escape()
        return Chars(has, self._text[begin : self._at])

    def _escape(self) -> tuple[Callable[[str], bool], str | None]:
        """What stands behind a backslash: a set, and the character where it is one."""
        char = self._text[self._at]
        self._at += 1
        if char.lower() in _SETS:
            return _negated(_SETS[char.lower()], char.isupper()), None
        if char in "pP":
            return _negated(_category(self._braced()), char == "P"), None
        if char in self._NAMED:
            char = self._NAMED[char]
        elif char == "c":
            char = chr(ord(self._text[self._at].upper()) - 64)
            self._at += 1
        elif char == "x" or char == "u":
            braced = self._text.startswith("{", self._at)
            digits = self._braced() if braced else self._text[self._at : self._at + (2 if char == "x" else 4)]
            self._at += 0 if braced else len(digits)
            char = chr(int(digits, 16))
        elif char.isalnum():
            raise ValueError("an unknown escape")
        return char.__eq__, char

    def _braced(self) -> str:
        if not self._text.startswith("{", self._at):
            self._at += 1
            return self._text[self._at - 1]
        end = self._text.index("}", self._at)
        name, self._at = self._text[self._at + 1 : end], end + 1
        return name

    def _chars(self, begin: int) -> Node:
        negated = self._take("^")
        sets: list[Callable[[str], bool]] = []
        while not self._take("]"):
            has, low = self._member()
            if low is not None and self._text.startswith("-", self._at) and self._text[self._at + 1] != "]":
                self._at += 1
                _, high = self._member()
                if high is None or high < low:
                    raise ValueError("a range that is none")
                has = _between(low, high)
            sets.append(has)
        return Chars(_negated(lambda one: any(has(one) for has in sets), negated), self._text[begin : self._at])

    def _member(self) -> tuple[Callable[[str], bool], str | None]:
        char = self._text[self._at]
        self._at += 1
        if char == "\\":
            if self._take("b"):
                return "\b".__eq__, "\b"
            return self._escape()
        if char == "[" or self._text[self._at - 1 : self._at + 1] in ("&&", "--", "~~"):
            raise ValueError("read in different ways by different engines")
        return char.__eq__, char


def _word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")


_SETS: dict[str, Callable[[str], bool]] = {
    "d": lambda char: char.isascii() and char.isdecimal(),
    "w": _word,
    "s": lambda char: (char.isspace() and not "\x1c" <= char <= "\x1f") or char == "\ufeff",
}
_CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
               "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf")  # fmt: skip
_LONG = {
    "Letter": "L",
    "Lowercase_Letter": "Ll",
    "Uppercase_Letter": "Lu",
    "Mark": "M",
    "Number": "N",
    "Punctuation": "P",
}


def _category(name: str) -> Callable[[str], bool]:
    name = _LONG.get(name, name)
    if not any(one.startswith(name) for one in _CATEGORIES) or not name:
        raise ValueError("an unknown property")
    return lambda char: unicodedata.category(char).startswith(name)


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda char: low <= char <= high


def _negated(has: Callable[[str], bool], negated: bool) -> Callable[[str], bool]:
    return (lambda char: not has(char)) if negated else has


_SPECIAL = frozenset("\\^$.*+?()[]{}|-&~#/")


def literal(text: str) -> str:
    """The expression of a text."""
    return "".join("\\" + char if char in _SPECIAL else char for char in text)


def all_but(texts: list[str]) -> Iterator[str]:
    """The alternatives of an expression that matches, as a whole, every text but these."""
    beginnings: dict[str, set[str]] = {"": set()}
    for text in texts:
        for end, char in enumerate(text):
            beginnings.setdefault(text[:end], set()).add(char)
            beginnings.setdefault(text[: end + 1], set())
    for beginning, following in beginnings.items():
        if beginning not in texts:
            yield literal(beginning)
        others = f"[^{literal(''.join(sorted(following)))}]" if following else ANY
        yield f"{literal(beginning)}{others}{ANY}*"


ANY = r"(?:.|\n)"


def without_looking(pattern: Pattern, text: str) -> list[str] | None:
    """Expressions that all have to match where `text` has to, none of which looks around; None where none are known.

    Negative looks ahead at the very beginning, as in `^(?!\\.)(?!.*\\.\\.)...`, become expressions of their own. They may
    allow less: `.` ends at a line break, they do not.
    """
    root = pattern.root
    if not isinstance(root, Sequence) or not isinstance(root.parts[0], Edge) or root.parts[0].kind != "^":
        return None
    looks = []
    for part in root.parts[1:]:
        if not isinstance(part, Look):
            break
        looks.append(part)
    written = "".join(look.text for look in looks)
    rest = text[1 + len(written) :]
    if not text.startswith(f"^{written}") or not pattern_of(rest).regular:
        return None
    denied = [_denied(look) for look in looks]
    return None if None in denied else [f"^{rest}", *filter(None, denied)]


def _denied(look: Look) -> str | None:
    """The expression of all texts that a negative look ahead lets pass."""
    if look.wanted or not look.ahead:
        return None
    parts = look.part.parts if isinstance(look.part, Sequence) else (look.part,)
    anywhere = isinstance(parts[0], Repeat) and (parts[0].low, parts[0].high) == (0, None)
    if anywhere:
        assert isinstance(parts[0], Repeat)
        if not isinstance(parts[0].part, Chars) or parts[0].part.text != ".":
            return None
        parts = parts[1:]
    chars = [part.text for part in parts if isinstance(part, Chars) and part.text != "."]
    if not chars or len(chars) != len(parts):
        return None
    if not anywhere:
        beginnings = ["", *(f"{''.join(chars[:end])}{_not(chars[end])}{ANY}*" for end in range(len(chars)))]
        shorter = ["".join(chars[:end]) for end in range(1, len(chars))]
        return f"^(?:{'|'.join([*beginnings, *shorter])})$"
    if len(set(chars)) > 1:
        return None
    few = f"(?:{chars[0]}){{0,{len(chars) - 1}}}"
    return f"^(?:{few}{_not(chars[0])})*{few}$"


def _not(chars: str) -> str:
    if not chars.startswith("["):
        return f"[^{chars}]"
    return f"[{chars[2:]}" if chars.startswith("[^") else f"[^{chars[1:]}"
