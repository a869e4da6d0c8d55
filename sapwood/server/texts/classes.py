"""/classify: the labels of texts."""

from __future__ import annotations

import time
import uuid

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.task import Score
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.routes import Described, post
from sapwood.server.texts.asking import Input, Reading, Usage, read, tokens_of, used
from sapwood.text.reading import Reader


class Classified(msgspec.Struct):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(msgspec.Struct):
    """`probs` are in the order of the model's labels."""

    id: str
    created: int
    model: str
    data: list[Classified]
    usage: Usage
    object: str = "list"


class ClassRequest(Reading, kw_only=True):
    input: Input | None = None


def routes(front: Front) -> list[Described]:
    async def classify(request: Request, body: ClassRequest) -> Response:
        """The likeliest label of each text, and how likely all are, by a model that has a classifier."""
        body.check(front, Score)
        reader = Reader(front.text, front.facts)
        texts = await tokens_of(front, body.input, param="input", most=body.most(front))
        choices = await read(
            front, request, [reader.score(tokens, param="input") for tokens in texts], body, param="input"
        )
        data = []
        for choice in choices:
            probs = reader.squashed(choice.vector)
            label = reader.labels[int(np.argmax(probs))]
            data.append(Classified(choice.index, label, probs.tolist(), len(probs)))
        id = f"classify-{uuid.uuid4().hex}"
        return json_response(Classes(id, int(time.time()), front.answering, data, used(choices)))

    return [post(front, "/classify", ClassRequest, classify, gives=Classes)]
