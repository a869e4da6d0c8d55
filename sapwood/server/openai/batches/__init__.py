"""/v1/batches: files of requests, answered when there is nothing more urgent."""

from sapwood.server.openai.batches.routes import routes

__all__ = ["routes"]
