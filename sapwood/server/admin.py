"""What operators and tools ask: liveness, metrics, version, tokens of a text, text of tokens, an empty cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sapwood import __version__
from sapwood.base.errors import RequestError
from sapwood.engine.client import EngineClient
from sapwood.server.body import json_response
from sapwood.server.fields import Int, Messages
from sapwood.server.front import Front
from sapwood.server.health import Health, health_of
from sapwood.server.load import load_of
from sapwood.server.routes import Described, Media, plain, post


class TokenizeRequest(msgspec.Struct, Messages, kw_only=True):
    """A prompt or messages. Special tokens are added to a prompt unless told otherwise, to messages only if told."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class Tokens(msgspec.Struct, omit_defaults=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: list[Int]
    model: str | None = None


class Text(msgspec.Struct):
    prompt: str


class ReplicaHealth(msgspec.Struct, omit_defaults=True):
    """One of several engines; `reason` says why it is gone."""

    running: int
    waiting: int
    restarts: int
    reason: str | None = None


class HealthReply(msgspec.Struct, omit_defaults=True):
    """`running` and `waiting` are of the engine's last report, `restarts` how often it was started again, `reason` why not all is well,
    `paused` that nothing is computed until somebody says so, `replicas` how each of several engines is: the server is well while one of
    them is."""

    status: str
    model: str
    running: int
    waiting: int
    restarts: int
    reason: str | None = None
    paused: bool = False
    replicas: list[ReplicaHealth] = []


class Version(msgspec.Struct):
    version: str


def routes(front: Front) -> list[Described]:
    async def health(request: Request) -> Response:
        """200 while steps end in time, 503 with the reason while they do not."""
        found = await health_of(front)
        return _told(found, front, ok=found.alive)

    async def ready(request: Request) -> Response:
        """200 while requests are taken, 503 with the reason while they are not."""
        found = await health_of(front)
        return _told(found, front, ok=found.ready)

    async def metrics(request: Request) -> Response:
        """Metrics, as Prometheus reads them."""
        return Response(front.metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def version(request: Request) -> Response:
        """The server's version."""
        return json_response(Version(__version__))

    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        """The tokens of a prompt, or of a conversation as the model's template writes it."""
        front.check_model(body.model)
        tokens = await _tokens_of(body, front)
        strings = [front.text.token_text(token) for token in tokens] if body.return_token_strs else None
        return json_response(Tokens(len(tokens), front.facts.max_model_len, tokens, strings))

    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        """The text of some tokens."""
        front.check_model(body.model)
        if body.tokens:
            front.check_tokens(body.tokens, "tokens")
        return json_response(Text(await front.decode(body.tokens, skip_special=False)))

    return [
        plain("/health", health, gives=HealthReply, otherwise={503: HealthReply}),
        plain("/ready", ready, gives=HealthReply, otherwise={503: HealthReply}),
        plain("/metrics", metrics, gives=Media("text/plain")),
        plain("/version", version, gives=Version),
        post(front, "/tokenize", TokenizeRequest, tokenize, gives=Tokens),
        post(front, "/detokenize", DetokenizeRequest, detokenize, gives=Text),
    ]


def _told(health: Health, front: Front, *, ok: bool) -> Response:
    """Gauges are those of the engine's last report."""
    stats, engine = front.engine.stats, front.engine
    running, waiting = (stats.running, stats.waiting) if stats is not None else (0, 0)
    paused = stats is not None and stats.paused
    each = [_replica(one) for one in engine.replicas] if len(engine.replicas) > 1 else []
    body = HealthReply(health.status, front.model_name, running, waiting, engine.restarts, health.reason, paused, each)
    reply = json_response(body, 200 if ok else 503)
    reply.headers.update({} if ok else health.headers)
    return reply


def _replica(engine: EngineClient) -> ReplicaHealth:
    load = load_of(engine)
    return ReplicaHealth(load.running, load.waiting, engine.restarts, engine.dead)


async def _tokens_of(body: TokenizeRequest, front: Front) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("Give either prompt or messages.", param="prompt")
    if body.prompt is not None:
        return await front.encode(body.prompt, param="prompt", add_special=body.add_special_tokens is not False)
    return (await front.render(body.talk(), tools=body.tools or None)).tokens


def index(front: Front, routes: Sequence[Route]) -> Described:
    """GET /: what this is, and where to go from here."""
    paths: dict[str, list[str]] = {}
    for route in routes:
        paths[route.path] = sorted({*paths.get(route.path, ()), *(route.methods or ())} - {"HEAD"})

    async def root(request: Request) -> Response:
        """What this is, and what there is."""
        return JSONResponse({"name": "sapwood", "version": __version__, "model": front.model_name, "routes": paths})

    return plain("/", root, gives=dict[str, Any])
