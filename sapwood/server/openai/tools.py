"""The tools of a chat request: which may be called, which must be, and what the grammar of that is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar, Part
from sapwood.grammar.end_check import EndCheck, together
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Asked
from sapwood.server.body import field_error
from sapwood.server.front import Front
from sapwood.server.openai.protocol import ChatRequest
from sapwood.text.model import Thoughts
from sapwood.text.parsers import Said
from sapwood.text.parsers.rules import NOTHING, Offer, Rules

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: Function | None = None


class Name(msgspec.Struct, kw_only=True):
    name: str


class Chosen(msgspec.Struct, kw_only=True):
    type: str = "function"
    function: Name | None = None


class Allowed(msgspec.Struct, kw_only=True):
    mode: str = "auto"
    tools: list[Chosen] = []


class Choice(msgspec.Struct, kw_only=True):
    """`tool_choice` as an object: one function, or some that are allowed."""

    type: str = "function"
    function: Name | None = None
    allowed_tools: Allowed | None = None


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
    offers: tuple[Offer, ...]
    places: tuple[str, ...]
    must: bool
    many: bool

    @property
    def strict(self) -> bool:
        return any(offer.strict for offer in self.offers)

    @property
    def schemas(self) -> Mapping[str, Any]:
        return {offer.name: offer.schema for offer in self.offers}


def toolbox_of(body: ChatRequest, *, reads: bool) -> Toolbox | None:
    """A request's tools, None without any. `reads`: this server reads calls. Raises RequestError naming the field."""
    names, must = _choice(body.tool_choice)
    if not body.tools:
        if must or names:
            raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        return None
    offers = _offers(body.tools)
    if body.tool_choice == "none":
        return None
    if unknown := [name for name in names or () if name not in offers]:
        raise RequestError(f"tool_choice names {unknown[0]!r}, which is not among the tools.", param="tool_choice")
    if must and not reads:
        raise RequestError("tool_choice: this server reads no calls (--tool-parser none).", param="tool_choice")
    kept = {name: offer for name, offer in offers.items() if names is None or name in names} if reads else {}
    places = tuple(f"tools[{list(offers).index(name)}].function.parameters" for name in kept)
    many = body.parallel_tool_calls is not False and not (must and names is not None and len(names) == 1)
    return Toolbox(told=body.tools, offers=tuple(kept.values()), places=places, must=must, many=many)


def _choice(choice: str | dict[str, Any] | None) -> tuple[list[str] | None, bool]:
    """The names that may be called, None for all, and whether one has to be."""
    if choice in (None, "auto", "none"):
        return None, False
    if choice == "required":
        return None, True
    if isinstance(choice, dict):
        try:
            given = msgspec.convert(choice, Choice)
        except msgspec.ValidationError as error:
            raise field_error(error, within="tool_choice") from None
        if given.type == "function" and given.function is not None:
            return [given.function.name], True
        allowed = given.allowed_tools
        if given.type == "allowed_tools" and allowed is not None and allowed.mode in ("auto", "required"):
            names = [one.function.name for one in allowed.tools if one.function is not None]
            if names and len(names) == len(allowed.tools):
                return names, allowed.mode == "required"
    raise RequestError(
        "tool_choice must be none, auto, required, "
        '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}.',
        param="tool_choice",
    )


def _offers(tools: Sequence[dict[str, Any]]) -> dict[str, Offer]:
    offers: dict[str, Offer] = {}
    for index, raw in enumerate(tools):
        where = f"tools[{index}]"
        try:
            tool = msgspec.convert(raw, Tool)
        except msgspec.ValidationError as error:
            raise field_error(error, within=where) from None
        if tool.type != "function":
            raise RequestError(f"{where}.type must be function, got {tool.type!r}.", param=f"{where}.type")
        if tool.function is None:
            raise RequestError(f"{where}.function is missing.", param=f"{where}.function")
        name, param = tool.function.name, f"{where}.function.name"
        if not _NAME.fullmatch(name):
            raise RequestError(f"{param} must be 1 to 128 letters, digits, _ . or -, got {name!r}.", param=param)
        if name in offers:
            raise RequestError(f"{param}: there are two tools named {name!r}.", param=param)
        schema = tool.function.parameters or NOTHING
        if schema.get("type", "object") != "object":
            param = f"{where}.function.parameters"
            raise RequestError(f"{param} must be the schema of an object.", param=param)
        offers[name] = Offer(name=name, schema={"type": "object", **schema}, strict=bool(tool.function.strict))
    return offers


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


async def end_checks_of(
    front: Front, toolbox: Toolbox | None, asked: Asked | None, grammar: Asked | None
) -> EndChecks | None:
    """The checks of outputs of `grammar`, which `grammar_of` made; None where it leaves nothing to check."""
    if grammar is None or not await front.check_grammar(grammar):
        return None
    calls = {}
    for offer, place in _bound(toolbox, asked):
        end_check = await front.end_check(_parameters(offer, place))
        if end_check is not None:
            calls[offer.name] = end_check
    return EndChecks(
        None if asked is None or (toolbox is not None and toolbox.must) else await front.end_check(asked), calls
    )


def _bound(toolbox: Toolbox | None, asked: Asked | None) -> list[tuple[Offer, str]]:
    """The tools whose parameters a grammar holds to their schemas, and their places."""
    if toolbox is None:
        return []
    pairs = zip(toolbox.offers, toolbox.places, strict=True)
    return [(offer, place) for offer, place in pairs if toolbox.must or offer.strict or asked is not None]


def _parameters(offer: Offer, place: str) -> Asked:
    return Asked(Grammar.json(offer.schema), place, offer.strict)


async def grammar_of(front: Front, toolbox: Toolbox | None, asked: Asked | None, thoughts: Thoughts) -> Asked | None:
    """The grammar of an answer: `asked` for its text, the toolbox's for its calls, and where thoughts may stand.

    Raises RequestError for a tool's parameters that cannot be a grammar.
    """
    rules = front.text.rules()
    part, param = await _part(front, rules, toolbox, asked)
    if part is None:
        return (
            asked
            if asked is None or thoughts in ("none", "over")
            else _behind(rules, rules.text(asked.grammar), asked.param, thoughts)
        )
    return _behind(rules, part, param, thoughts)


def _behind(rules: Rules, part: Part, param: str, thoughts: Thoughts) -> Asked:
    if thoughts in ("none", "over"):
        return Asked(Grammar.parts(part), param)
    return Asked(rules.behind_thoughts(part, open=thoughts == "open"), param)


async def _part(front: Front, rules: Rules, toolbox: Toolbox | None, asked: Asked | None) -> tuple[Part | None, str]:
    if toolbox is None or not toolbox.offers or not (toolbox.must or toolbox.strict or asked is not None):
        return None, ""
    until = perf_counter() + front.config.grammar.compile_seconds
    for offer, place in _bound(toolbox, asked):
        if perf_counter() > until:  # one request has one budget; the grammar of all calls is bounded by itself
            break
        await front.check_grammar(_parameters(offer, place))
    if toolbox.must:
        return rules.must_call(toolbox.offers, many=toolbox.many), "tools"
    if asked is None:
        return rules.may_call(toolbox.offers, many=toolbox.many), "tools"
    await front.check_grammar(asked)
    return rules.text_or_call(asked.grammar, toolbox.offers, many=toolbox.many), asked.param
