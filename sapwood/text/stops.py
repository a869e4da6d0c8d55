"""Stops in text that arrives in pieces. A further kind of stop is a class with the two methods of `Stop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Found(NamedTuple):
    """Where a stop stands in a text, and what the caller is told that ended the output."""

    start: int
    end: int
    stop: str


class Stop(Protocol):
    """One kind of stop."""

    def find(self, text: str) -> Found | None:
        """The stop that is complete first; of several that end at the same character, the longest."""
        ...

    def keep(self, text: str) -> int:
        """How many characters at the end of `text`, which holds no stop, may be the beginning of one."""
        ...


class Strings:
    """Stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops

    def find(self, text: str) -> Found | None:
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not ends:
            return None
        end, start, stop = min(ends)
        return Found(start, end, stop)

    def keep(self, text: str) -> int:
        return max((_overlap(text, stop) for stop in self._stops), default=0)


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
    """The end of the text as stops of one kind see it, names of tokens in their places or not.

    `kept` is how many of the characters that a stop may begin with are shown ones.
    """

    def __init__(self, stop: Stop, *, names: bool) -> None:
        self._stop = stop
        self._names = names
        self._text = ""
        self._hidden: list[int] = []  # places of characters that are not shown
        self.kept = 0

    def push(self, text: str, name: str) -> _Hit | None:
        """Take more and look for a stop; without one, forget what none can begin with."""
        self._text += text
        if self._names and name:
            self._hidden += range(len(self._text), len(self._text) + len(name))
            self._text += name
        size = len(self._text)
        found = self._stop.find(self._text)
        if found is not None:
            start, end, stop = found
            return _Hit(end - size, start - size, stop, self._text[start:end], self._shown(start))
        at = size - self._stop.keep(self._text)
        self.kept = self._shown(at)
        self._text = self._text[at:]
        if self._hidden:
            self._hidden = [place - at for place in self._hidden if place >= at]
        return None

    def _shown(self, start: int) -> int:
        """How many characters from `start` on are shown."""
        hidden = sum(place >= start for place in self._hidden) if self._hidden else 0
        return len(self._text) - start - hidden


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, `stop` itself not being in `text`."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
