"""/v1/models, in a shape that OpenAI's clients and Anthropic's both read."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.routes import Described, plain


class ModelCard(msgspec.Struct):
    """OpenAI's `object`, `created` and `owned_by`, vLLM's `root` and `max_model_len`, Anthropic's rest. An adapter has a `parent`, the model
    that it changes, and the directory that it was loaded from as its root."""

    id: str
    created: int
    created_at: str
    display_name: str
    root: str
    max_model_len: int
    max_input_tokens: int
    max_tokens: int
    type: str = "model"
    object: str = "model"
    owned_by: str = "sapwood"
    parent: str | None = None
    permission: list[None] = []


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: bool = False
    object: str = "list"


def routes(front: Front) -> list[Described]:
    def card(name: str) -> ModelCard:
        most, known = front.facts.max_model_len, None if name in front.model_names else front.adapters.find(name)
        since = front.started if known is None else known.since
        return ModelCard(
            name if known is None else known.name,
            created=since,
            created_at=datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z"),
            display_name=name,
            root=front.config.model.model if known is None else known.adapter.path,
            max_model_len=most,
            max_input_tokens=most - 1,
            max_tokens=most - 1,
            parent=None if known is None else front.model_name,
        )

    async def models(request: Request) -> Response:
        """The models that are served: one under each of its names, and its adapters."""
        names = [*front.model_names, *(known.name for known in front.adapters.registry)]
        return json_response(ModelList([card(name) for name in names], names[0], names[-1]))

    async def model(request: Request) -> Response:
        """One model, by its name."""
        name = request.path_params["name"]
        front.check_model(name)
        return json_response(card(name))

    return [
        plain("/v1/models", models, gives=ModelList),
        plain("/v1/models/{name:path}", model, gives=ModelCard),
    ]
