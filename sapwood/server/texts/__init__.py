"""Routes of models that read: vectors and scores of texts, as OpenAI, Cohere, vLLM and SGLang have them."""

from __future__ import annotations

from sapwood.server.front import Front
from sapwood.server.rooms import Room
from sapwood.server.routes import Described
from sapwood.server.texts import classes, embeddings, ranks


def routes(front: Front) -> list[Described]:
    return [*embeddings.routes(front), *ranks.routes(front), *classes.routes(front)]


ROOM = Room(routes)
