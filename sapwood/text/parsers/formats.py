"""How families of models write tool calls and reasoning, as data: what is read here is also what grammars demand.

A call is written in one of four shapes: an object of JSON that holds name and arguments, a name followed by JSON, a name
with a tag for each argument, or a name with keywords in brackets. Sections frame them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Object:
    """{"name": "f", "arguments": {...}}; read with "parameters" too."""

    arguments: str = "arguments"

    @property
    def head(self) -> str:
        return "{"


@dataclass(frozen=True, kw_only=True)
class Named:
    """`before` NAME `between` {...} `after`. With `numbered` a colon and a number follow the name.

    `prefix` stands before the names of tools, and is forgotten at times.
    """

    before: str = ""
    prefix: str = ""
    between: str = ""
    after: str = ""
    numbered: bool = False

    @property
    def head(self) -> str:
        return self.before.strip()


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """`before` NAME `between`, then for each argument `key` KEY `middle` VALUE `end`, then `after`.

    Values that are strings are written as they are, others as JSON. `newlines` stand around values and are no part of
    them. `text_middle` is the middle where that of strings differs.
    """

    before: str = ""
    between: str = ""
    key: str
    middle: str
    end: str
    after: str = ""
    newlines: bool = False
    text_middle: str = ""

    @property
    def head(self) -> str:
        return self.before.strip()


@dataclass(frozen=True, kw_only=True)
class Keywords:
    """`before` NAME `begin` KEY `equals` VALUE, KEY `equals` VALUE `end`; `quote` stands around strings."""

    before: str = ""
    begin: str = "("
    equals: str = "="
    comma: str = ", "
    end: str = ")"
    quote: str = '"'

    @property
    def head(self) -> str:
        return self.before


Shape = Object | Named | Tagged | Keywords


@dataclass(frozen=True, kw_only=True)
class Section:
    """One call or several in a row: `open` `begin` CALL `comma` CALL `end` `close`.

    Without `open` it is the whole answer, and counts as calls only if the first names a tool that was offered.
    `single`: another call has a section of its own. `others` open it as well.
    """

    open: str
    shape: Shape
    begin: str = ""
    comma: str = ""
    end: str = ""
    close: str = ""
    single: bool = False
    between: str = "\n"
    others: tuple[str, ...] = ()

    @property
    def opens(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.open, *self.others)))


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """How a family calls tools.

    Attributes:
        sections: The first is what grammars write; of those with the same opening, the first that fits is read.
        drop: Texts that are only punctuation between messages, and nobody's to see.
        signs: What a template contains that teaches this format, all of them.
        ids: What calls are named by: "long" (call_ and 24 characters), "short" (nine), or "numbered" (functions.f:0).
        aliases: Other engines' names for it.
    """

    sections: tuple[Section, ...]
    drop: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    ids: str = "long"
    aliases: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that structures an output."""
        texts = list(self.drop)
        for section in self.sections:
            texts += [*section.opens, section.begin, section.comma, section.end, section.close]
            texts += [value for value in vars(section.shape).values() if isinstance(value, str)]
        return tuple(dict.fromkeys(filter(None, texts)))


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """Thoughts between `begin` and `end`.

    Attributes:
        leave: What ends them when their budget is spent and nothing particular has to follow; `end` is in it. Empty is `end`.
        resume: What stands between thoughts and what follows them. Line breaks may stand there as well, with `lines`.
        answer: What an answer in text begins with.
    """

    begin: str
    end: str
    leave: str = ""
    resume: str = ""
    lines: bool = False
    answer: str = ""
    drop: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.end not in (self.leave or self.end):
            raise ValueError(f"leave must contain end: there is no {self.end!r} in {self.leave!r}")

    def way_out(self, *, bound: bool) -> str:
        """What ends thoughts whose budget is spent; `bound`: what follows `end` is a grammar's to say."""
        leave = self.leave or self.end
        return leave[: leave.index(self.end)] + self.end if bound else leave

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.begin, self.end, *self.drop)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a model's output is read as: either part may be missing."""

    tools: ToolFormat | None = None
    reasoning: Reasoning | None = None

    @property
    def drop(self) -> tuple[str, ...]:
        parts = (part.drop for part in (self.tools, self.reasoning) if part is not None)
        return tuple(dict.fromkeys(text for part in parts for text in part))

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(text for part in (self.tools, self.reasoning) if part is not None for text in part.markers)
