"""Lines that agents put into system prompts and that change from one request, session or day to the next.

A prompt is found in the cache up to where it first differs, so one such line costs all that follows it. Each rule is data:
what a client writes, and where it does no harm. Only system messages before the first other message are looked at; one in the middle
of a conversation keeps its place and its words. Nothing is done unless `--stable-prefix` names the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Place = Literal["nowhere", "behind", "last"]


class Rule(NamedTuple):
    """Something that a client writes into its system prompt.

    `place` is where it goes: `nowhere` is for what says nothing to a model; `behind` is the beginning of the first message that
    is no system message, behind the instructions and the tools, for what stays the same within a conversation; `last` is the end
    of the last user message, for what changes with each request. `about` says what it is, for docs/clients.md.
    """

    pattern: re.Pattern[str]
    place: Place
    about: str


def _lines(text: str) -> re.Pattern[str]:
    """Whole lines, each of which matches in full; those that are blank and follow go too."""
    return re.compile(rf"^(?:{text})(?:\n[ \t]*)*(?:\n|\Z)", re.MULTILINE)


_ENVIRONMENT = re.compile(
    r"^(?:Here is useful information about the environment[^\n]*\n)?<env>\n[^<]*</env>\n*", re.MULTILINE
)
_TODAY = _lines(
    r"[ \t]*(?:#+ |[-*] )?(?:Today's date(?: is|:)|Today is|Current date(?: is|:)|The current date(?: is|:))[ \t][^\n]{1,80}"
)
_NOW = _lines(
    r"[ \t]*(?:#+ |[-*] )?(?:Current time(?: is|:)|The current time(?: is|:)|The time is now|Current date and time:)[ \t][^\n]{1,80}"
)
_COUNTED = _lines(
    r"[ \t]*(?:<budget:token_budget>[^\n]{1,40}|(?:Token usage|Tokens used|Context usage|Tokens remaining):[ \t][^\n]{1,80})"
)

RULES: Mapping[str, Sequence[Rule]] = {
    "claude-code": (
        Rule(
            _lines(r"x-anthropic-billing-header:[^\n]*"),
            "nowhere",
            "the billing header: a version, an entry point, and a hash that differs with each request",
        ),
        Rule(_ENVIRONMENT, "behind", "the block `<env>`: directory, platform, date"),
        Rule(
            re.compile(r"^gitStatus: .*\Z", re.MULTILINE | re.DOTALL),
            "behind",
            "`gitStatus:` and all behind it: branch, changed files, last commits",
        ),
        Rule(_TODAY, "behind", "`Today's date …`"),
        Rule(_COUNTED, "last", "token budgets and counts"),
    ),
    "opencode": (
        Rule(_ENVIRONMENT, "behind", "the block `<env>`: directory, platform, date"),
        Rule(_TODAY, "behind", "`Today's date …`"),
    ),
    "cline": (
        Rule(
            re.compile(r"^SYSTEM INFORMATION\n\n(?:[A-Z][A-Za-z ]{1,40}:[^\n]*\n?){1,12}", re.MULTILINE),
            "behind",
            "`SYSTEM INFORMATION`: system, shell, home and working directory",
        ),
    ),
    "dates": (
        Rule(_TODAY, "behind", "a line that says what day it is"),
        Rule(_NOW, "last", "a line that says what time it is"),
    ),
}
"""By what `--stable-prefix` calls a client."""


class Stable:
    """Applies the rules of some clients, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._rules = [rule for name in names for rule in RULES[name]]

    def __call__(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same messages with what changes behind what does not; the same list where there is nothing of it."""
        head = next((at for at, one in enumerate(given) if one.get("role") not in _SYSTEM), len(given))
        if not self._rules or not head or head == len(given):
            return given
        taken: dict[Place, list[str]] = {"nowhere": [], "behind": [], "last": []}
        messages = [self._stripped(one, taken) for one in given[:head]] + given[head:]
        if not any(taken.values()):
            return given
        if taken["behind"]:
            messages[head] = _with(messages[head], "\n".join(taken["behind"]), first=True)
        last = max((at for at in range(head, len(messages)) if messages[at].get("role") == "user"), default=head)
        if taken["last"]:
            messages[last] = _with(messages[last], "\n".join(taken["last"]), first=False)
        return [one for at, one in enumerate(messages) if at >= head or one["content"] or not given[at]["content"]]

    def _stripped(self, message: dict[str, Any], taken: dict[Place, list[str]]) -> dict[str, Any]:
        """A system message without what the rules take."""
        content = message.get("content")
        if isinstance(content, str):
            return message | {"content": self._without(content, taken)}
        parts = []
        for part in content or ():
            text = part.get("text")
            stripped = part | {"text": self._without(text, taken)} if isinstance(text, str) else part
            parts += [stripped] if stripped.get("text") or not text else []
        return message | {"content": parts}

    def _without(self, text: str, taken: dict[Place, list[str]]) -> str:
        for rule in self._rules:

            def take(found: re.Match[str], place: Place = rule.place) -> str:
                taken[place].append(found[0].strip("\n"))
                return ""

            text = rule.pattern.sub(take, text)
        return text


_SYSTEM = ("system", "developer")


def _with(message: dict[str, Any], text: str, *, first: bool) -> dict[str, Any]:
    """A message with a text before or behind its own."""
    content = message.get("content")
    if isinstance(content, list):
        part = {"type": "text", "text": f"{text}\n\n" if first else f"\n\n{text}"}
        return message | {"content": [part, *content] if first else [*content, part]}
    own = content or ""
    return message | {"content": f"{text}\n\n{own}" if first else f"{own}\n\n{text}"}
