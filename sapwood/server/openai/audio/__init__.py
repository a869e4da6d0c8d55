"""/v1/audio: recordings become text, as OpenAI has it."""

from sapwood.server.openai.audio.routes import routes

__all__ = ["routes"]
