"""Lazy snippets: lines to be merged into a file, and marks that stand for lines of it which stay as they are.

    # ... existing code ...
    def area(self):
        return self.width * self.height
    # ... existing code ...

A mark is a comment of dots and words, or the words "... existing code ..." by themselves. Between two marks is a *hunk*:
its lines stand behind one another in the file as it will be.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMENT = r"(?:#|//|/\*+|\*|--|<!--|;|%|\{/\*|\"\"\"|''')"
_DOTS = r"(?:\.{3,}|…)"
_WORDS = r"existing|rest of|unchanged|remaining|remains|other|previous|omitted|keep|same as before|stays"
_MARK = re.compile(
    rf"\s*{_COMMENT}\s*{_DOTS}[^.…]*(?:\b(?:{_WORDS})\b[^.…]*)?{_DOTS}?\W*"  # a comment of dots
    rf"|\s*{_COMMENT}\s*[^.…]*\b(?:existing code|rest of the \w+|unchanged)\b[^.…\w]*(?:\w+[^.…\w]*)?{_DOTS}?\W*"
    rf"|\s*{_COMMENT}?\s*{_DOTS}\s*(?:existing|rest of|unchanged|remaining)\b[^.…]*{_DOTS}?\W*",
    re.IGNORECASE,
)


class Unclear(ValueError):
    """Where a snippet belongs does not follow from its lines alone."""


class Hunk(NamedTuple):
    """Lines between marks, without their ends. `after` and `before`: a mark precedes, or follows them."""

    lines: list[str]
    after: bool
    before: bool


def hunks_of(update: str) -> list[Hunk]:
    """The hunks of a snippet that have any lines but blank ones."""
    parts: list[list[str]] = [[]]
    for line in update.splitlines():
        if is_mark(line):
            parts.append([])
        else:
            parts[-1].append(line)
    last = len(parts) - 1
    found = [Hunk(lines, place > 0, place < last) for place, lines in enumerate(parts)]
    return [hunk for hunk in found if any(map(str.strip, hunk.lines))]


def is_mark(line: str) -> bool:
    return _MARK.fullmatch(line) is not None


def plain(line: str) -> str:
    """A line as it is compared: runs of white space count as one blank, at its ends as none."""
    return " ".join(line.split())


def telling(line: str) -> bool:
    """Whether a plain line says anything: it is neither blank nor brackets alone."""
    return any(map(str.isalnum, line))
