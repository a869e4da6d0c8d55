"""/api/embed, and /api/embeddings, which is older."""

from __future__ import annotations

from time import perf_counter_ns

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.fields import Int
from sapwood.server.front import Front
from sapwood.server.ollama.protocol import check_model
from sapwood.server.routes import Described, post
from sapwood.server.texts.asking import Input
from sapwood.server.texts.embeddings import EmbeddingRequest, embedded, vectors


class EmbedBody(msgspec.Struct, kw_only=True):
    """Texts that are too long are cut off unless `truncate` is false."""

    model: str | None = None
    input: Input | None = None
    truncate: bool | None = None
    dimensions: Int | None = None


class Embedded(msgspec.Struct):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None


class EmbeddedOne(msgspec.Struct):
    embedding: list[float]


def routes(front: Front) -> list[Described]:
    async def embed(request: Request, body: EmbedBody) -> Response:
        """A vector of each text."""
        begun = perf_counter_ns()
        check_model(front, body.model)
        if body.input in (None, "", []):
            return json_response(Embedded(front.answering, [], 0, 0, 0))
        asked = EmbeddingRequest(
            input=body.input,
            truncate_prompt_tokens=None if body.truncate is False else -1,
            dimensions=body.dimensions,
        )
        choices = await embedded(front, request, asked, param="input")
        made = [vector.tolist() for _, vector in vectors(front, choices, asked)]
        count = sum(len(choice.prompt.tokens) for choice in choices)
        return json_response(Embedded(front.answering, made, perf_counter_ns() - begun, 0, count))

    async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
        """The vector of one text, as older clients ask for it."""
        check_model(front, body.model)
        if body.prompt is None:
            raise RequestError("prompt is missing.", param="prompt")
        if not body.prompt:
            return json_response(EmbeddedOne([]))
        asked = EmbeddingRequest(input=body.prompt, truncate_prompt_tokens=-1)
        choices = await embedded(front, request, asked, param="prompt")
        ((_, vector),) = vectors(front, choices, asked)
        return json_response(EmbeddedOne(vector.tolist()))

    return [
        post(front, "/api/embed", EmbedBody, embed, gives=Embedded),
        post(front, "/api/embeddings", EmbeddingsBody, embeddings, gives=EmbeddedOne),
    ]
