"""/v1/models."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.routes import Described, plain


class ModelCard(msgspec.Struct):
    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "sapwood"
    parent: None = None
    permission: list[None] = []


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


def routes(front: Front) -> list[Described]:
    def card(name: str) -> ModelCard:
        return ModelCard(name, front.started, front.config.model.model, front.facts.max_model_len)

    async def models(request: Request) -> Response:
        """The models that are served."""
        return json_response(ModelList([card(name) for name in front.model_names]))

    async def model(request: Request) -> Response:
        """One model, by its name."""
        name = request.path_params["name"]
        front.check_model(name)
        return json_response(card(name))

    return [
        plain("/v1/models", models, gives=ModelList),
        plain("/v1/models/{name:path}", model, gives=ModelCard),
    ]
