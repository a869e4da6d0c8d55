"""The tools of a turn: which may be called, which must be, and what the grammar of that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sapwood.base.grammar import Grammar, Part
from sapwood.grammar.end_check import EndCheck, together
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Asked
from sapwood.server.front import Front
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Said
from sapwood.text.parsers.rules import OfferedTool, Rules


@dataclass(frozen=True, kw_only=True)
class Toolbox:
    """What a request offers.

    Attributes:
        told: The tools as the template prints them.
        offers: Those that may be called; none where calls are not read.
        places: Where each of them stands in the body.
        must: One has to be called.
        many: Several may be called at once.
    """

    told: list[dict[str, Any]]
    offers: tuple[OfferedTool, ...]
    places: tuple[str, ...]
    must: bool
    many: bool

    @property
    def strict(self) -> bool:
        return any(offer.strict for offer in self.offers)

    @property
    def schemas(self) -> Mapping[str, Any]:
        return {offer.name: offer.schema for offer in self.offers}


@dataclass(frozen=True)
class EndChecks:
    """The checks of a chat's complete outputs: of its text, and of the arguments of its calls by tool."""

    text: EndCheck | None
    calls: Mapping[str, EndCheck]

    def __call__(self, said: Said) -> Finding:
        findings = [self.calls[call.name](call.arguments) for call in said.calls if call.name in self.calls]
        if self.text is not None and not said.calls:
            findings.append(self.text(said.text))
        return together(findings)


async def grammar_of(
    front: Front, toolbox: Toolbox | None, asked: Asked | None, thoughts: Thoughts
) -> tuple[Grammar | None, EndChecks | None]:
    """The grammar of an answer: `asked` for its text, the toolbox's for its calls, and where thoughts may stand; and the
    checks of complete outputs, where it leaves something to check.

    Raises RequestError for a format, or a tool's parameters, that cannot be a grammar.
    """
    rules = front.text.rules()
    bound = _bound(toolbox, asked)
    tried = await _try(front, bound)
    text = None if asked is None or (toolbox is not None and toolbox.must) else await front.end_check(asked)
    whole = _whole(rules, toolbox, asked, thoughts)
    if whole is None:
        return None, None
    unchecked = text is not None if whole is asked else await front.check_grammar(whole)
    if not unchecked:
        return whole.grammar, None
    for offer, place in bound[len(tried) :]:
        tried[offer.name] = await front.end_check(_parameters(offer, place))
    return whole.grammar, EndChecks(text, {name: check for name, check in tried.items() if check is not None})


def _bound(toolbox: Toolbox | None, asked: Asked | None) -> list[tuple[OfferedTool, str]]:
    """The tools whose parameters a grammar holds to their schemas, and their places."""
    if toolbox is None:
        return []
    pairs = zip(toolbox.offers, toolbox.places, strict=True)
    return [(offer, place) for offer, place in pairs if toolbox.must or offer.strict or asked is not None]


def _parameters(offer: OfferedTool, place: str) -> Asked:
    return Asked(Grammar.json(offer.schema), place, offer.strict)


async def _try(front: Front, bound: list[tuple[OfferedTool, str]]) -> dict[str, EndCheck | None]:
    """Try tools out one by one, so that an error names the one it is of; the checks of their arguments, by name."""
    until = perf_counter() + front.config.grammar.compile_seconds
    tried: dict[str, EndCheck | None] = {}
    for offer, place in bound:
        if perf_counter() > until:  # one request has one budget; the grammar of all calls is bounded by itself
            break
        tried[offer.name] = await front.end_check(_parameters(offer, place))
    return tried


def _whole(rules: Rules, toolbox: Toolbox | None, asked: Asked | None, thoughts: Thoughts) -> Asked | None:
    part, param = _part(rules, toolbox, asked)
    if thoughts in ("none", "over"):
        return asked if part is None else Asked(Grammar.parts(part), param)
    if part is None:
        if asked is None:
            return None
        part, param = rules.text(asked.grammar), asked.param
    return Asked(rules.behind_thoughts(part, open=thoughts == "open"), param)


def _part(rules: Rules, toolbox: Toolbox | None, asked: Asked | None) -> tuple[Part | None, str]:
    """What calls are in the grammar, and a text beside them."""
    if toolbox is None or not toolbox.offers or not (toolbox.must or toolbox.strict or asked is not None):
        return None, ""
    if toolbox.must:
        return rules.must_call(toolbox.offers, many=toolbox.many), "tools"
    if asked is None:
        return rules.may_call(toolbox.offers, many=toolbox.many), "tools"
    return rules.text_or_call(asked.grammar, toolbox.offers, many=toolbox.many), asked.param
