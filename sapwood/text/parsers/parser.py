"""An output taken apart as it grows: thoughts, text, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from sapwood.text.parsers import calls
from sapwood.text.parsers.formats import Dialect, Section
from sapwood.text.parsers.source import Finder, Malformed, Reading, Source

Kind = Literal["text", "thought", "call", "arguments"]


class Event(NamedTuple):
    """More of the text, of the thoughts, or of the arguments of call number `call`; or the name with which one begins."""

    kind: Kind
    text: str
    call: int = -1


class Parser:
    """Reads one output: `push` its text as it comes, and `finish`. However it is cut, the events add up to the same.

    Whitespace between thoughts, text and calls belongs to none of them; text that goes on behind calls does so on a new
    line. What only looked like a call is text again.

    Args:
        tools: The JSON schema of the parameters of each tool that was offered. Without any, calls are text.
        thinking: The prompt has begun the thoughts already.
        split: Thoughts are told apart; else they are text as they stand, marks and all. No call is read in them anyhow.
        most_calls: Calls beyond so many are left out.

    Attributes:
        num_calls: Calls read; num_malformed: those that broke off, were no JSON, or never became a call.
        cut: The text has ended within a call that counts.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        tools: Mapping[str, Any] | None = None,
        thinking: bool = False,
        split: bool = True,
        most_calls: int | None = None,
    ) -> None:
        self.num_calls = 0
        self.num_malformed = 0
        self.cut = False
        self.schema: object = None
        self._tools = tools or {}
        self._most = most_calls
        self._split = split
        self._reasoning = dialect.reasoning
        self._sections: dict[str, list[Section]] = {}
        self._bare: list[Section] = []
        closes: list[str] = []
        for section in dialect.tools.sections if dialect.tools and tools else ():
            for open in section.opens:
                self._sections.setdefault(open, []).append(section)
            if not section.open:
                self._bare.append(section)
            closes += [section.close] if section.close.startswith("<") else []
        begin = [self._reasoning.begin] if self._reasoning else []
        self._finder = Finder([*self._sections, *begin, *dialect.drop, *closes])
        self._ends = Finder([self._reasoning.end] if self._reasoning else [])
        self._source = Source()
        self._events: list[Event] = []
        self._spaces = ""  # behind what has been said; said as well if anything of its kind follows
        self._fresh = False  # whitespace that comes now is nobody's
        self._said: set[Kind] = set()
        self._bare_name = False  # a call without an opening counts only if its tool was offered
        self._open = False  # a call has begun and is not complete
        self._run = self._read(thinking and self._reasoning is not None)
        next(self._run)

    def push(self, text: str) -> list[Event]:
        """Take more text; what is certain now."""
        self._source.push(text)
        return self._go()

    def finish(self) -> list[Event]:
        """The rest, now that no more text comes. Call it once."""
        self._source.final = True
        return self._go()

    def _go(self) -> list[Event]:
        next(self._run, None)
        events, self._events = self._events, []
        return events

    def _read(self, thinking: bool) -> Reading[None]:
        yield
        if thinking:
            yield from self._think()
        yield from self._bare_calls()
        while (marker := (yield from self._source.until(self._finder, self._say))) is not None:
            if self._reasoning is not None and marker == self._reasoning.begin:
                yield from self._think(marker)
                yield from self._bare_calls()
            elif marker in self._sections:
                yield from self._calls(marker)
        if self._spaces and not self._fresh:
            self._emit("text", self._spaces)

    # -- text and thoughts --------------------------------------------------------------------------------------------

    def _say(self, text: str, kind: Kind = "text") -> None:
        if self._fresh:
            text = text.lstrip()
            if not text:
                return
            self._fresh = False
            self._spaces = "\n" if kind in self._said else ""
        text = self._spaces + text
        said = text.rstrip()
        self._spaces = text[len(said) :]
        if said:
            self._said.add(kind)
            self._emit(kind, said)

    def _emit(self, kind: Kind, text: str, call: int = -1) -> None:
        if self._events and kind != "call" and self._events[-1].kind == kind:
            text = self._events.pop().text + text
        self._events.append(Event(kind, text, call))

    def _turn(self) -> None:
        """Something of another kind follows."""
        self._spaces, self._fresh = "", True

    def _think(self, begin: str = "") -> Reading[None]:
        if self._split:
            self._turn()
            yield from self._source.until(self._ends, lambda text: self._say(text, "thought"))
            self._turn()
        else:
            self._say(begin)
            end = yield from self._source.until(self._ends, self._say)
            self._say(end or "")

    # -- calls --------------------------------------------------------------------------------------------------------

    def _bare_calls(self) -> Reading[None]:
        """Calls that are the whole answer, without a mark before them."""
        if not self._bare:
            return
        self._source.hold()
        yield from self._source.space()
        there = yield from self._source.peek()
        heads = {(section.begin.strip() or section.shape.head)[:1] for section in self._bare}
        self._source.back()
        if there and there in heads:
            self._bare_name = True
            yield from self._attempt(self._bare, "")
            self._bare_name = False

    def _calls(self, marker: str) -> Reading[None]:
        yield from self._attempt(self._sections[marker], marker)

    def _attempt(self, sections: list[Section], marker: str) -> Reading[None]:
        """Read calls as one of some sections has them; if nothing came of it, all of it is text."""
        source, before = self._source, self.num_calls
        for section in sections:
            source.hold()
            try:
                yield from self._section(section)
                return
            except Malformed:
                if source.held:
                    source.back()
                if self._open or self.num_calls > before:
                    self.cut = self._open and source.final and self._counts
                    self.num_malformed += self._open
                    self._open = False
                    return
        if marker:
            self.num_malformed += 1
            self._say(marker)

    def _section(self, section: Section) -> Reading[None]:
        source = self._source
        if section.begin.strip():
            yield from source.expect(section.begin)
        while True:
            yield from calls.read(section.shape, source, self)
            source.hold()
            yield from source.space()
            if section.comma.strip() and (yield from source.match(section.comma)):
                source.hold()
                continue
            head = section.shape.head
            if head and (yield from source.match(head)):
                source.back()
                source.hold()
                continue
            if section.comma.isspace() and not head and not (yield from self._over(section)):
                source.hold()
                continue
            break
        source.release()
        if section.end.strip():
            yield from source.match(section.end)
        if section.close:
            yield from source.match(section.close)

    def _over(self, section: Section) -> Reading[bool]:
        """Whether a section whose calls only stand below each other ends here."""
        if (yield from self._source.match(section.close)):
            return True
        return not (yield from self._source.peek())

    def begin(self, name: str) -> None:
        """See `calls.Sink`."""
        if not name or (self._bare_name and name not in self._tools):
            raise Malformed
        self._turn()
        self._source.release()
        self._open = True
        self.schema = self._tools.get(name)
        self.num_calls += 1
        if self._counts:
            self._emit("call", name, self.num_calls - 1)

    def argue(self, text: str) -> None:
        """See `calls.Sink`."""
        if self._counts:
            self._emit("arguments", text, self.num_calls - 1)

    def end(self) -> None:
        """See `calls.Sink`."""
        self._open = False

    @property
    def _counts(self) -> bool:
        """Whether the latest call is not beyond those that are wanted."""
        return self._most is None or self.num_calls <= self._most


class Call(NamedTuple):
    """A call of a tool. `arguments` is JSON as the model wrote it, which may be wrong."""

    name: str
    arguments: str


class Said(NamedTuple):
    """A whole output: its text without calls and thoughts, the thoughts, and the calls."""

    text: str
    thought: str
    calls: list[Call]


def gather(events: Iterable[Event]) -> Said:
    """What all events of an output add up to."""
    parts: dict[Kind, list[str]] = {"text": [], "thought": []}
    calls: list[tuple[str, list[str]]] = []
    for kind, text, number in events:
        if kind == "call":
            calls.append((text, []))
        elif kind == "arguments":
            calls[number][1].append(text)
        else:
            parts[kind].append(text)
    return Said("".join(parts["text"]), "".join(parts["thought"]), [Call(name, "".join(text)) for name, text in calls])
