"""What users have run into with servers like this one, tried on the smallest thing that can show it."""

from tests.grammar.conftest import begin, vocabulary
from tests.server.conftest import anyio_backend, app, client, config, engine, http, text
from tests.text.conftest import byte_level

__all__ = ["anyio_backend", "app", "begin", "byte_level", "client", "config", "engine", "http", "text", "vocabulary"]
