"""Whether a merged file is what was asked for: what the update does not touch is untouched, and all of it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import msgspec

from sapwood.apply.lazy import hunks_of, plain, telling


class Line(NamedTuple):
    number: int
    text: str


class Problem(msgspec.Struct, frozen=True):
    """`kind`: lost (a line of the file is gone, far from what the update shows), invented (a line is in neither), or missing (a
    line of the update did not come). `line` counts from 1, in the file, the merged file, or the part of the update between two
    marks."""

    kind: str
    line: int
    text: str


def check(code: str, update: str, merged: str) -> list[Problem]:
    """What is wrong with a merged file, as far as lines tell that say something; white space within them is not looked at."""
    old, new = _lines(code), _lines(merged)
    asked = [Line(place, line) for hunk in hunks_of(update) for place, line in enumerate(map(plain, hunk.lines), 1)]
    asked = [line for line in asked if telling(line.text)]
    known, before, after = ({line.text for line in lines} for lines in (asked, old, new))
    found: list[Problem] = []
    for i1, i2, j1, j2 in _differences(old, new):
        fresh = new[j1:j2]
        found += [Problem("invented", *line) for line in fresh if line.text not in known | before]
        shown = {line.text for line in (*fresh, *old[max(i1 - 1, 0) : i1], *old[i2 : i2 + 1])}
        if not shown & known:
            found += [Problem("lost", *line) for line in old[i1:i2]]
    return found + [Problem("missing", *line) for line in asked if line.text not in after]


def _lines(text: str) -> list[Line]:
    lines = (Line(place, plain(line)) for place, line in enumerate(text.splitlines(), 1))
    return [line for line in lines if telling(line.text)]


def _differences(old: Sequence[Line], new: Sequence[Line]) -> Iterator[tuple[int, int, int, int]]:
    """Where two files differ: ranges of lines of either. What they begin and end with alike is not searched."""
    olds, news = ([line.text for line in lines] for lines in (old, new))
    most = min(len(olds), len(news))
    head = next((i for i in range(most) if olds[i] != news[i]), most)
    tail = next((i for i in range(most - head) if olds[-1 - i] != news[-1 - i]), most - head)
    matcher = SequenceMatcher(None, olds[head : len(olds) - tail], news[head : len(news) - tail], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            yield head + i1, head + i2, head + j1, head + j2
