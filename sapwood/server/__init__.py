"""The HTTP front: OpenAI's API, the native one, and what an operator needs. No torch here."""

from sapwood.server.app import create_app
from sapwood.server.serve import bind, run, serve

__all__ = ["bind", "create_app", "run", "serve"]
