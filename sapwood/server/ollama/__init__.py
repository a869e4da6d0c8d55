"""Ollama's API."""

from __future__ import annotations

from sapwood.server.front import Front
from sapwood.server.ollama import chat, embed, models
from sapwood.server.ollama.errors import OllamaError, envelope
from sapwood.server.rooms import Room
from sapwood.server.routes import Described


def routes(front: Front) -> list[Described]:
    return [*chat.routes(front), *embed.routes(front), *models.routes(front)]


ROOM = Room(routes, envelope, OllamaError)
