"""The guest that shortens histories, and the route that shows what it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Total

from sapwood.base.errors import RequestError
from sapwood.route.ask import UNREADABLE
from sapwood.route.context.compact import Compacted, compacted
from sapwood.route.context.counts import Counter, Estimate, Tokenized
from sapwood.route.context.shapes import Message
from sapwood.route.context.summary import Summaries
from sapwood.route.context.table import ANY, Context, Step
from sapwood.route.fleet import Fleet
from sapwood.route.guests import Answered, Passing
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


_OPTIONS = ("budget", "target", "steps", "tool_output_tokens", "keep_last", "count")


class Histories:
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
        if passing.ask.path not in _PATHS or not self._fleet.table.context:
            return None
        name = passing.models[0] if passing.models else passing.ask.model or ""
        context = self._of(name)
        if context is None or len(passing.ask.body) * _MOST_BYTES_A_TOKEN <= context.budget:
            return None
        body = passing.ask.document
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            return None  # the server will say what is wrong
        done = await self._done(messages, body, context, name, passing)
        if done.steps:
            passing.ask = passing.ask.changed(msgspec.json.encode({**body, "messages": done.messages}))
            passing.told["x-sapwood-context"] = done.shown()
        return None

    def answered(self, passing: Passing, how: Answered) -> None:
        pass

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
