"""/v1/models."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sapwood.server.body import json_response
from sapwood.server.front import Front


class ModelCard(msgspec.Struct):
    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "sapwood"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


def routes(front: Front) -> list[Route]:
    def card() -> ModelCard:
        return ModelCard(front.model_name, front.started, front.config.model.model, front.facts.max_model_len)

    async def models(request: Request) -> Response:
        return json_response(ModelList([card()]))

    async def model(request: Request) -> Response:
        front.check_model(request.path_params["name"])
        return json_response(card())

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]
