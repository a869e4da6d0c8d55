"""What a model is asked where lines alone do not tell how to merge, and how such a request is written in a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sapwood.base.errors import ConfigError

OPENING = "<updated-code>\n"
"""The answer is begun with it, so that nothing but the file can follow."""
CLOSING = "</updated-code>"
"""Ends the answer."""

WORDS, TAGS = "words", "tags"

_WORDS = """\
Merge all changes from the update into the code. Where the update has a comment such as "... existing code ...", the code stays as it \
is. Keep everything else of the code exactly: order, comments, white space. Write the whole merged code between <updated-code> and \
</updated-code>, without a word of your own and without a fence.

<instruction>{instruction}</instruction>

<code>
{code}
</code>

<update>
{update}
</update>"""

_TAGGED = """\
<instruction>{instruction}</instruction>
<code>{code}</code>
<update>{update}</update>"""

TEMPLATES: Mapping[str, str] = MappingProxyType({WORDS: _WORDS, TAGS: _TAGGED})
"""What is asked, by name: in words, as models that follow instructions want it, and by nothing but the tags that services for
applying edits take. `{instruction}`, `{code}` and `{update}` are filled in."""

_TAGS = ("instruction", "code", "update")
_ASKED = re.compile(r"\s*" + r"\s*".join(rf"<{tag}>(?P<{tag}>.*)</{tag}>" for tag in _TAGS) + r"\s*", re.DOTALL)


_MADE_FOR_IT = "apply", "morph"  # are in the names of models that know these tags
_PLACE = re.compile(r"\{(" + "|".join(_TAGS) + r")\}")


class Edit(NamedTuple):
    """A file, and a snippet to be merged into it; the instruction says in words what it is about."""

    instruction: str
    code: str
    update: str


def edit_of(text: str) -> Edit | None:
    """The edit that a chat's only message asks for, if it is nothing but `<instruction>`, `<code>` and `<update>`."""
    found = _ASKED.fullmatch(text)
    if found is None:
        return None
    return Edit(found["instruction"].strip(), _within(found["code"]), _within(found["update"]))


def _within(text: str) -> str:
    """What stands between tags, which may have lines of their own."""
    return text.removeprefix("\r").removeprefix("\n")


def template_of(given: str, model: str) -> str:
    """The template of that name, or that a file holds; `auto` is the one for a model of that name. Raises ConfigError."""
    if given == "auto":
        made_for_it = any(word in model.lower() for word in _MADE_FOR_IT)
        return TEMPLATES[TAGS if made_for_it else WORDS]
    if given in TEMPLATES:
        return TEMPLATES[given]
    try:
        found = Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--apply-template {given} is neither auto nor {' nor '.join(TEMPLATES)} nor a file that can be read: {error}."
        ) from None
    if missing := [place for place in ("{code}", "{update}") if place not in found]:
        raise ConfigError(f"--apply-template {given} has no {' and no '.join(missing)}: put it where the text belongs.")
    return found


def conversation(edit: Edit, template: str = _WORDS) -> list[dict[str, Any]]:
    """Messages, the last of them an answer that is begun and to be continued."""
    asked = _PLACE.sub(lambda found: getattr(edit, found[1]), template)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": OPENING}]


class Answered:
    """An answer as a file: without line breaks before it, and with one behind it if the file as it was had one."""

    def __init__(self, code: str) -> None:
        self.end = "\n" if code.endswith("\n") else ""
        self._begun = False
        self._held = ""  # line breaks that are the end, or not

    def push(self, text: str) -> str:
        """What more of the answer says for certain; `end` follows the last of it."""
        if not self._begun:
            text = text.lstrip("\r\n")
            self._begun = bool(text)
        text = self._held + text
        body = text.rstrip("\r\n")
        self._held = text[len(body) :]
        return body


def answered(text: str, code: str) -> str:
    """A whole answer as a file."""
    file = Answered(code)
    return file.push(text) + file.end
