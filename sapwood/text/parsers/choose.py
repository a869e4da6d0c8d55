"""Which of the formats a model writes: as its template shows, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeVar

from sapwood.base.errors import ConfigError
from sapwood.text.parsers.families import REASONING, TOOLS
from sapwood.text.parsers.formats import Dialect, Reasoning, ToolFormat


class Format(Protocol):
    """What has a name in a table."""

    @property
    def signs(self) -> tuple[str, ...]: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


F = TypeVar("F", bound=Format)


class Formats(NamedTuple):
    """Tables of both kinds, by name; where a template shows signs of several, the first is meant."""

    tools: Mapping[str, ToolFormat]
    reasoning: Mapping[str, Reasoning]


FORMATS = Formats(TOOLS, REASONING)
"""Those that Sapwood itself has."""


AUTO, NONE = RESERVED = ("auto", "none")
"""Names that no format has: the one that the template shows, and none at all."""


def choose(template: str, *, tools: str = AUTO, reasoning: str = AUTO, formats: Formats = FORMATS) -> Dialect:
    """The dialect of a model with this template ("" without one, or with one that cannot print tools).

    `tools` and `reasoning` are names in the tables or aliases, 'none', or 'auto', in any case. Raises ConfigError for others.
    """
    return Dialect(
        tools=_chosen("--tool-parser", formats.tools, tools, template, TOOLS["generic"]),
        reasoning=_chosen("--reasoning-parser", formats.reasoning, reasoning, template, None),
    )


def _chosen(flag: str, table: Mapping[str, F], name: str, template: str, other: F | None) -> F | None:
    wanted = name.lower()
    if wanted == NONE:
        return None
    if wanted == AUTO:
        return next((known for known in table.values() if _shows(known.signs, template)), other)
    for key, named in table.items():
        if wanted in map(str.lower, (key, *named.aliases)):
            return named
    raise ConfigError(f"{flag} {name}: there are auto, none, {', '.join(table)}.")


def _shows(signs: tuple[str, ...], template: str) -> bool:
    return bool(signs) and all(sign in template for sign in signs)
