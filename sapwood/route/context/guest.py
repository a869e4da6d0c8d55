"""The guest that shortens histories, and the route that shows what it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Total

from sapwood.base.errors import RequestError
from sapwood.route.ask import UNREADABLE, Ask
from sapwood.route.context.compact import Compacted, compacted
from sapwood.route.context.counts import Counter, Estimate, Tokenized
from sapwood.route.context.shapes import Message
from sapwood.route.context.summary import Summaries
from sapwood.route.context.table import ANY, Context, Step
from sapwood.route.fleet import Fleet
from sapwood.route.guests import Guest, Passing
from sapwood.route.inner import Inner

_PATHS = frozenset(("/v1/chat/completions", "/v1/messages"))
_BESIDE = ("tools", "system")
_MOST_BYTES_A_TOKEN = 1  # no tokenizer makes more tokens than there are bytes

_Whole = Annotated[int, Meta(ge=0)]


class CompactRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A history in OpenAI's shape or in Anthropic's. What is not said about how it is to be shortened is as the table has it for the model."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    budget: Annotated[int, Meta(ge=64)] | None = None
    target: Annotated[float, Meta(gt=0, le=1)] | None = None
    steps: tuple[Step, ...] | None = None
    tool_output_tokens: _Whole | None = None
    keep_last: Annotated[int, Meta(ge=1)] | None = None
    count: Literal["estimate", "tokenize"] | None = None


_MINE = "context"
_HEADER = "x-sapwood-context"


@dataclass
class _Cut:
    """A request as it came, and what was made of it by name and bounds, with what is told of that."""

    whole: Ask
    made: dict[tuple[str, Context | None], tuple[Ask, str]] = field(default_factory=dict)


_OPTIONS = ("budget", "target", "steps", "tool_output_tokens", "keep_last", "count")


class Histories(Guest):
    """Shortens what is too long for its model, by the table's [context]; nothing where that says nothing of the model."""

    def __init__(self, fleet: Fleet, inner: Inner, registry: CollectorRegistry) -> None:
        self._fleet = fleet
        self._tokenized, self._summaries = Tokenized(inner), Summaries(inner)
        self._steps = Total(
            "sapwood_route_compacted", "Histories that were shortened, by step", ("step",), registry=registry
        )
        self._saved = Total(
            "sapwood_route_compacted_tokens", "Tokens that histories were shortened by", registry=registry
        )
        self._failed = Total(
            "sapwood_route_summary_failed",
            "Summaries that could not be had: messages were left out without",
            registry=registry,
        )

    async def arrives(self, passing: Passing) -> web.Response | None:
        """Shortens it for the first of its models that somebody could be asked for now."""
        if passing.ask.path in _PATHS and self._fleet.table.context:
            there = [model for _, model in self._tried(passing)]
            first = next((model for model in there if self._fleet.able(model)), there[0])
            passing.notes[_MINE] = _Cut(passing.ask)
            passing.ask = await self.leaves(passing, passing.ask, first)
        return None

    async def leaves(self, passing: Passing, ask: Ask, model: str | None) -> Ask:
        """Shortens it anew for another model that may be longer, or has to be shorter."""
        cut: _Cut | None = passing.notes.get(_MINE)
        if cut is None:
            return ask
        name = next((name for name, tried in self._tried(passing) if tried == model), "")
        context = self._closest(name, model or name)
        by = name if context is None or context.count != "tokenize" else model or name
        if (by, context) not in cut.made:
            cut.made[by, context] = await self._shortened(passing, cut.whole, context, by)
        made, told = cut.made[by, context]
        passing.told.pop(_HEADER, None)
        if told:
            passing.told[_HEADER] = told
        return made

    def _tried(self, passing: Passing) -> list[tuple[str, str]]:
        """Names that it goes by, each with a model that it stands for, in the order in which these are tried; one at least."""
        names = passing.models or (passing.ask.model or "",)
        return [(name, model) for name in names for model in self._fleet.names(name)]

    async def _shortened(self, passing: Passing, ask: Ask, context: Context | None, name: str) -> tuple[Ask, str]:
        """What is to be sent, and what is told of it."""
        if context is None or len(ask.body) * _MOST_BYTES_A_TOKEN <= context.budget:
            return ask, ""
        body = ask.document
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            return ask, ""  # the server will say what is wrong
        done = await self._done(messages, body, context, name, passing)
        if not done.steps:
            return ask, ""
        return ask.changed(msgspec.json.encode({**body, "messages": done.messages})), done.shown()

    async def compact(self, request: web.Request, passing: Passing) -> web.Response:
        """The shortened history, what was done, and the tokens before and after."""
        try:
            asked = msgspec.json.decode(passing.ask.body, type=CompactRequest)
        except UNREADABLE as error:
            raise RequestError(f"{error}.", param=_field(str(error))) from error
        context = self._of(asked.model or "") or (Context(budget=asked.budget) if asked.budget else None)
        if context is None:
            raise RequestError(
                "Say how many tokens are left: a `budget`, or [context] in the router's table.", param="budget"
            )
        given = {name: value for name in _OPTIONS if (value := getattr(asked, name)) is not None}
        try:
            context = msgspec.structs.replace(context, **given)
        except ValueError as error:
            raise RequestError(
                f"{error}, which [context] of the router's table names for a model.", param="steps"
            ) from error
        if context.count == "tokenize" and asked.model is None:
            raise RequestError("Name the model whose tokens are to be counted.", param="model")
        body = {"tools": asked.tools, "system": asked.system}
        done = await self._done(asked.messages, body, context, asked.model or "", passing)
        return web.json_response(_told(done, asked), dumps=lambda told: msgspec.json.encode(told).decode())

    def _of(self, name: str) -> Context | None:
        table = self._fleet.table.context
        names = (name, *self._fleet.names(name), ANY)
        return next((table[one] for one in names if one in table), None)

    def _closest(self, name: str, model: str) -> Context | None:
        """Whichever leaves less, of what the table says of a name and of a model that it stands for."""
        table = self._fleet.table.context
        said = [table[one] for one in dict.fromkeys((name, model)) if one in table]
        return min(said, key=lambda one: one.budget, default=table.get(ANY))

    async def _done(
        self, messages: Sequence[Message], body: Mapping[str, Any], context: Context, model: str, passing: Passing
    ) -> Compacted:
        beside = [body[name] for name in _BESIDE if body.get(name)]
        counter: Counter = self._tokenized.by(model) if context.count == "tokenize" else Estimate()
        done = await compacted(
            messages, beside, context, counter, lambda plan: self._summaries.of(messages, plan, context, passing)
        )
        for step in done.steps:
            self._steps.labels(step.step).inc()
        self._saved.inc(max(done.before - done.after, 0))
        if done.failed is not None:
            self._failed.inc()
        return done


def _told(done: Compacted, asked: CompactRequest) -> dict[str, Any]:
    said: dict[str, Any] = {"object": "context.compaction", "messages": done.messages}
    if asked.system is not None:
        said["system"] = asked.system
    return said | {
        "before": {"messages": len(asked.messages), "tokens": done.before},
        "after": {"messages": len(done.messages), "tokens": done.after},
        "counted": done.how,
        "fits": done.fits,
        "unchanged": done.same,
        "steps": [one._asdict() for one in done.steps],
        "summary_failed": done.failed,
    }


def _field(message: str) -> str | None:
    """The field that an error of msgspec's is about: "... - at `$.messages[...]`", or "... unknown field `x`"."""
    _, _, place = message.rpartition("`$.")
    if place and place != message:
        return place.rstrip("`").partition("[")[0]
    return message.rpartition(" `")[2].rstrip("`.") if "field `" in message else None
