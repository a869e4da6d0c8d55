"""Stops in text that arrives in pieces. A further kind of stop is a class that does what `Stop` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Match(NamedTuple):
    """Where a stop stands, in characters from the beginning of all text, and what the caller is told that it is."""

    end: int
    start: int
    stop: str


class Stop(Protocol):
    """One kind of stop, looked for in growing text."""

    @property
    def held(self) -> int:
        """Where the earliest stop begins that may still become complete; the end of the text if there is none."""
        ...

    def push(self, text: str) -> Match | None:
        """Take more text. Returns the stop that is complete first, of several that end at the same character the
        longest; there is no further text then. None of them begins before what `held` was."""
        ...


class Strings:
    """Stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._text = ""
        self.held = 0  # where that text begins

    def push(self, text: str) -> Match | None:
        text = self._text + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, start, stop = min(ends)
            return Match(self.held + end, self.held + start, stop)
        at = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._text = text[at:]
        self.held += at
        return None


class StopFinder:
    """Passes text on until a stop is complete, and keeps back only what may be the beginning of one.

    The first stop to be completed wins; of several that end at the same character, the longest. So the pieces in which
    text arrives make no difference. The text is cut before the stop, or behind it with `include`.

    Some tokens have a name but no text, as special tokens that are left out. The stops `plain` are looked for in the
    text as it is shown, those of `named` where these names stand in their places. So the one is found across a name,
    and the other only where it holds what the tokens say; with `include` it is shown in full, names in it as well.
    """

    def __init__(self, plain: Sequence[Stop], named: Sequence[Stop] = (), *, include: bool = False) -> None:
        self._views = [_View(stop, names=False) for stop in plain] + [_View(stop, names=True) for stop in named]
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, text: str, name: str = "") -> str:
        """Take more text, or the name of a token without one, and return what can be shown: nothing after a stop."""
        if self.found is not None:
            return ""
        held, hits, kept = self._held + text, [], 0
        for view in self._views:
            if (hit := view.push(text, name)) is not None:
                hits.append(hit)
            kept = max(kept, view.kept)
        if hits:
            hit = min(hits)
            self.found, self._held = hit.stop, ""
            return held[: len(held) - hit.shown] + (hit.text if self._include else "")
        at = len(held) - kept
        self._held = held[at:]
        return held[:at]

    def finish(self) -> str:
        """What was kept back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


class _Hit(NamedTuple):
    """A stop that was found: ends and starts from the end of all text, so that those of several views compare."""

    end: int
    start: int
    stop: str
    text: str
    shown: int
    """How many of the characters from its start on are shown ones."""


class _View:
    """The text as stops of one kind see it, names of tokens in their places or not, from where one may begin.

    `kept` is how many of these characters are shown ones.
    """

    def __init__(self, stop: Stop, *, names: bool) -> None:
        self._stop = stop
        self._names = names
        self._text = ""
        self._begin = self._end = 0  # of this text in all
        self._hidden: list[int] = []  # places of characters that are not shown
        self.kept = 0

    def push(self, text: str, name: str) -> _Hit | None:
        """Take more and look for a stop; without one, forget what none can begin with."""
        if self._names and name:
            place = self._end + len(text)
            self._hidden += range(place, place + len(name))
            text += name
        self._text += text
        self._end += len(text)
        match = self._stop.push(text)
        if match is not None:
            end, start, stop = match
            shown = self._text[start - self._begin : end - self._begin]
            return _Hit(end - self._end, start - self._end, stop, shown, self._count(start))
        held = self._stop.held
        self._text = self._text[held - self._begin :]
        self._begin = held
        self.kept = self._count(held)
        if self._hidden:
            self._hidden = [place for place in self._hidden if place >= held]
        return None

    def _count(self, start: int) -> int:
        """How many characters from `start` on are shown."""
        hidden = sum(place >= start for place in self._hidden) if self._hidden else 0
        return self._end - start - hidden


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, `stop` itself not being in `text`."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
