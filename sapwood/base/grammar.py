"""What an output has to match, as it travels from a request to the engine."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["json_schema", "regex", "choice", "lark", "gbnf", "structural_tag"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A language that one generation's text belongs to.

    Attributes:
        kind: How `text` is to be read.
        text: A JSON schema ("{}" is any JSON value), a regular expression, a JSON list of strings to choose from, a
            Lark grammar as llguidance reads it, a GBNF/EBNF grammar, or a JSON structural tag.
        after: The grammar binds the text that follows the first occurrence of this string in the output; text before it
            is free. Empty binds the output from its first token.
    """

    kind: Kind
    text: str
    after: str = ""
