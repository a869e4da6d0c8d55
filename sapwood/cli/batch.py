"""Lines of OpenAI's batches, answered by the server's routes without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sapwood.arch.families import declare
from sapwood.config import Config
from sapwood.engine.client import EngineClient
from sapwood.hub.files import ModelFiles
from sapwood.images.gallery import gallery_of
from sapwood.server import create_app
from sapwood.server.openai.batches.inside import Inside, answer_to
from sapwood.server.openai.batches.lines import ENDPOINTS, Fault, LineError, LineResult, line_of, result_of
from sapwood.server.openai.batches.routes import answering
from sapwood.text import TextModel

Answer = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]


@asynccontextmanager
async def batch_lines(
    engine: EngineClient, text: TextModel, config: Config, files: ModelFiles
) -> AsyncIterator[Answer]:
    """Yields what answers a line, as a line of an output file. What a body says of the model is not looked at."""
    tower = declare(files.config).encoder if {"image", "audio"} & set(engine.facts.media) else None
    gallery = gallery_of(files, tower, text, config)
    app = create_app(engine, text, config, files.name, defaults=files.generation_config, gallery=gallery)
    front = app.state.front
    ask = Inside(front, answering(front))

    async def answer(given: dict[str, Any]) -> dict[str, Any]:
        line = line_of(given, 1, ENDPOINTS)
        if isinstance(line, Fault):
            error = {"code": line.code, "message": line.message}
            return {"custom_id": given.get("custom_id"), "response": None, "error": error}
        line.body.pop("model", None)
        result = await answer_to(ask, line)
        if not isinstance(result, LineResult):
            result = result_of(line, error=LineError("engine_dead", "The engine has stopped."))
        whole: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(result))
        return whole

    try:
        yield answer
    finally:
        await front.close()
