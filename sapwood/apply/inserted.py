"""Hunks that only put lines between others, found by both of their ends.

What is put in may have lines that stand elsewhere in the file; a function like its neighbours, say. So such a hunk is looked at as a
whole: without some lines of its midst it is a run of lines of the file. Where that holds of one place, and of no other,
nothing else can be meant.

    file        hunk
    a    ─────  a
                new
                b
    b    ─────  b
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import pairwise
from typing import NamedTuple

from sapwood.apply.lazy import telling

_MOST_PLACES = 200  # of a hunk's first line


class Pair(NamedTuple):
    """A line of a hunk, and the line of the file that it is."""

    new: int
    old: int


def inserted(olds: Sequence[str], news: Sequence[str]) -> list[Pair] | None:
    """Which lines of a hunk are which of the file, both plain, if all others are put in between; else None."""
    first = next((place for place, line in enumerate(news) if line), len(news))
    end = next((place for place in range(len(news), first, -1) if news[place - 1]), first)
    news = news[first:end]
    if len(news) < 3:
        return None
    places = [place for place, line in enumerate(olds) if line == news[0]]
    if len(places) > _MOST_PLACES:
        return None
    found = [pairs for place in places for pairs in _at(olds, news, place)]
    if len(found) != 1 or _elsewhere(olds, news, {new for new, _ in found[0]}):
        return None
    return [Pair(first + new, old) for new, old in found[0]]


def _at(olds: Sequence[str], news: Sequence[str], place: int) -> list[list[Pair]]:
    """All ways in which the hunk's first line is that one; each replaces other lines of the file by the hunk."""
    most = min(len(news) - 1, len(olds) - place)
    before = 0
    while before < most and news[before] == olds[place + before]:
        before += 1
    found = []
    for size in range(2, most + 1):  # of the run of the file
        behind = 0
        while behind < size - 1 and news[-1 - behind] == olds[place + size - 1 - behind]:
            behind += 1
        for cut in range(min(before, size - 1), max(1, size - behind) - 1, -1):
            late = len(news) - size  # by how much lines behind the cut stand later in the hunk
            if _tells(news[:cut], news[cut : cut + late]) and _tells(news[cut + late :], news[cut : cut + late]):
                found.append([Pair(at if at < cut else at + late, place + at) for at in range(size)])
                break
    return found


def _elsewhere(olds: Sequence[str], news: Sequence[str], kept: Set[int]) -> bool:
    """Whether two lines that follow one another in the hunk, one of them new, do so in the file too: then it may be about that place."""
    known = {(one, other) for (_, one), (_, other) in pairwise(_said(olds))}
    return any(
        {at, then} - kept and (one, other) in known and (telling(one) or telling(other))
        for (at, one), (then, other) in pairwise(_said(news))
    )


def _said(lines: Sequence[str]) -> list[tuple[int, str]]:
    return [(place, line) for place, line in enumerate(lines) if line]


def _tells(kept: Sequence[str], new: Sequence[str]) -> bool:
    """Whether lines on one side say where they stand, and none of them comes again among the new ones, which might be meant then."""
    said = {line for line in kept if telling(line)}
    return bool(said) and said.isdisjoint(new)
