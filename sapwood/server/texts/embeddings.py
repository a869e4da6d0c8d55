"""/v1/embeddings, /pooling, and TEI's /embed."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.plan import Floats
from sapwood.base.task import Embed, Pooling
from sapwood.server.body import json_response
from sapwood.server.fields import Int
from sapwood.server.front import Front
from sapwood.server.generation import Choice
from sapwood.server.routes import Described, post
from sapwood.server.texts.asking import Input, Reading, Usage, read, tokens_of, used
from sapwood.text.reading import Reader

_PARAM = "input"


class Embedding(msgspec.Struct):
    """`embedding` is a list of numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"


class Pooled(msgspec.Struct):
    index: int
    data: list[float] | str
    object: str = "pooling"


class Poolings(msgspec.Struct):
    id: str
    created: int
    data: list[Pooled]
    model: str
    usage: Usage
    object: str = "list"


class EmbeddingRequest(Reading, kw_only=True):
    """`normalize`, `pooling` and `prompt_name` are by default as the model's files say."""

    input: Input | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = None
    normalize: bool | None = None
    pooling: Pooling | None = None
    prompt_name: str | None = None


class TeiRequest(msgspec.Struct, kw_only=True):
    inputs: Input | None = None
    truncate: bool | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: Int | None = None


def routes(front: Front) -> list[Described]:
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """A vector of each text, given as text or token ids."""
        choices = await embedded(front, request, body, param=_PARAM)
        data = [Embedding(choice.index, _worded(vector, body)) for choice, vector in vectors(front, choices, body)]
        return json_response(Embeddings(data, front.answering, used(choices)))

    async def pooling(request: Request, body: EmbeddingRequest) -> Response:
        """The same as vLLM's route of that name words it."""
        choices = await embedded(front, request, body, param=_PARAM)
        data = [Pooled(choice.index, _worded(vector, body)) for choice, vector in vectors(front, choices, body)]
        id = f"pool-{uuid.uuid4().hex}"
        return json_response(Poolings(id, int(time.time()), data, front.answering, used(choices)))

    async def embed(request: Request, body: TeiRequest) -> Response:
        """The same as text-embeddings-inference words it: a list of vectors."""
        asked = EmbeddingRequest(
            input=body.inputs,
            truncate_prompt_tokens=-1 if body.truncate else None,
            normalize=body.normalize,
            prompt_name=body.prompt_name,
            dimensions=body.dimensions,
        )
        choices = await embedded(front, request, asked, param="inputs")
        return json_response([vector.tolist() for _, vector in vectors(front, choices, asked)])

    return [
        post(front, "/v1/embeddings", EmbeddingRequest, embeddings, gives=Embeddings),
        post(front, "/pooling", EmbeddingRequest, pooling, gives=Poolings),
        post(front, "/embed", TeiRequest, embed, gives=list[list[float]]),
    ]


async def embedded(front: Front, request: Request, body: EmbeddingRequest, *, param: str) -> list[Choice]:
    """Have the texts of a body embedded. Raises RequestError."""
    body.check(front, Embed)
    reader = Reader(front.text, front.facts)
    reader.check_dimensions(body.dimensions)
    texts = await tokens_of(front, body.input, param=param, most=body.most(front), prompt=body.prompt_name)
    asked = [reader.embed(tokens, body.pooling, param=param) for tokens in texts]
    return await read(front, request, asked, body, param=param)


def vectors(front: Front, choices: list[Choice], body: EmbeddingRequest) -> list[tuple[Choice, Floats]]:
    """What has come of them, as the body wants it."""
    reader = Reader(front.text, front.facts)
    return [
        (choice, reader.vector(choice.vector, dimensions=body.dimensions, normalised=body.normalize))
        for choice in choices
    ]


def _worded(vector: Floats, body: EmbeddingRequest) -> list[float] | str:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
