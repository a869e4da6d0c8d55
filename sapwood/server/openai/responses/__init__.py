"""/v1/responses: answers as lists of items, kept by the server, alone or as turns of a conversation."""

from sapwood.server.openai.responses.routes import routes

__all__ = ["routes"]
