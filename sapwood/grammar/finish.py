"""The check of an output that is complete, where its grammar leaves keywords of JSON schemas out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar.schema import Finding, SchemaCheck
from sapwood.grammar.translate import StructuralTag, structural_tag


class Finish:
    """Checks the texts of one grammar against all that its schemas say. Raises GrammarError where that cannot be done."""

    def __init__(self, grammar: Grammar) -> None:
        self._after = grammar.after
        self._tag: StructuralTag | None = None
        if grammar.kind == "json_schema":
            self._checks = {"": SchemaCheck(json.loads(grammar.text))}
        elif grammar.kind == "structural_tag":
            self._tag = structural_tag(grammar.text)
            self._checks = {one.begin: SchemaCheck(one.schema) for one in self._tag.structures}
        else:
            raise GrammarError("it leaves out what its schemas say, and its texts cannot be taken apart to check that")

    def __call__(self, text: str) -> Finding:
        """Whether a complete output is what was asked for."""
        text = text.partition(self._after)[2] if self._after else text
        if self._tag is None:
            return self._checks[""](text)
        findings = [self._checks[begin].value(value) for begin, value in self._structures(text)]
        return together(findings)

    def _structures(self, text: str) -> Iterator[tuple[str, Any]]:
        """(Beginning, value) of each structure."""
        decoder, at = json.JSONDecoder(), 0
        while at < len(text):
            fitting = [begin for begin in self._checks if text.startswith(begin, at)]
            at += 1
            if fitting:
                begin = max(fitting, key=len)
                try:
                    value, at = decoder.raw_decode(text, at - 1 + len(begin))
                except (ValueError, RecursionError):
                    value = None  # cut off, which its schema may tell
                yield begin, value


def together(findings: list[Finding]) -> Finding:
    """One finding of several."""
    return Finding(all(one.valid for one in findings), [error for one in findings for error in one.errors])
