"""The check of an output that is complete, where its grammar leaves keywords of JSON schemas out."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar.schema import Finding, SchemaCheck
from sapwood.grammar.translate import structural_tag


class EndCheck:
    """Checks the texts of one grammar against all that its schemas say. Raises GrammarError where that cannot be done."""

    def __init__(self, grammar: Grammar) -> None:
        self._after = grammar.after
        self._free = grammar.kind == "structural_tag"
        self._checks: list[tuple[str, SchemaCheck]]
        if grammar.kind == "json_schema":
            self._checks = [("", SchemaCheck(json.loads(grammar.text)))]
        elif grammar.kind == "structural_tag":
            structures = structural_tag(grammar.text).structures
            self._checks = [(one.begin, SchemaCheck(one.schema)) for one in structures]
        else:
            raise GrammarError("it leaves out what its schemas say, and its texts cannot be taken apart to check that")

    def __call__(self, text: str) -> Finding:
        """Whether a complete output is what was asked for."""
        text = text.partition(self._after)[2] if self._after else text
        if not self._free:
            return self._checks[0][1](text)
        return together(list(self._structures(text)))

    def _structures(self, text: str) -> Iterator[Finding]:
        """What each structure gives; one that begins as several do has to be one of them."""
        at = 0
        while at < len(text):
            findings = []
            ends = [at + 1]
            for begin, check in self._checks:
                if text.startswith(begin, at):
                    end, finding = _value(text, at + len(begin), check)
                    ends.append(end)
                    findings.append(finding)
            if findings:
                yield next((one for one in findings if one.valid), findings[0])
            at = max(ends)


def _value(text: str, at: int, check: SchemaCheck) -> tuple[int, Finding]:
    """Where the JSON at a place ends, and what is found of it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return at, Finding(False, ["$: the text is not complete JSON"])
    return end, check.value(value)


def together(findings: list[Finding]) -> Finding:
    """One finding of several."""
    return Finding(all(one.valid for one in findings), [error for one in findings for error in one.errors])
