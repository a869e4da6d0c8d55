"""What SGLang's operators ask: to pause and go on, to end requests, to forget what is cached."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.pausing import Mode, flush, pause, resume
from sapwood.server.routes import Described, plain, post

_MODES: dict[str, Mode] = {"abort": "abort", "in_place": "keep", "retract": "retract"}


class AbortRequest(msgspec.Struct, kw_only=True):
    """`rid` is the request's own, or that of its batch."""

    rid: str | None = None
    abort_all: bool | None = None


class Aborted(msgspec.Struct):
    aborted: int


class PauseRequest(msgspec.Struct, kw_only=True):
    """What becomes of requests under way: they end with what they have said; they stay where they are; they give up their pages
    and wait. New ones wait in any case."""

    mode: Literal["abort", "in_place", "retract"] = "abort"


class Nothing(msgspec.Struct):
    pass


class Done(msgspec.Struct):
    message: str
    status: str = "ok"


class Flushed(msgspec.Struct):
    freed_pages: int


class LoadAdapter(msgspec.Struct, kw_only=True):
    """An adapter's name from now on, and the directory of its files."""

    lora_name: str
    lora_path: str


class UnloadAdapter(msgspec.Struct, kw_only=True):
    lora_name: str


class LoadedAdapters(msgspec.Struct):
    """All adapters that are loaded now, and where from."""

    loaded_adapters: dict[str, str]
    success: bool = True


def routes(front: Front) -> list[Described]:
    async def flush_cache(request: Request) -> Response:
        """Forget all cached prefixes that no running request has."""
        return json_response(Flushed(await flush(front)))

    async def abort_request(request: Request, body: AbortRequest) -> Response:
        """End a request of /generate by its `rid`, or with `abort_all` every request; each answers with what it has said."""
        if not body.rid and not body.abort_all:
            raise RequestError("Give rid, or abort_all: true.", param="rid")
        return json_response(Aborted(front.flights.abort(None if body.abort_all else body.rid)))

    async def pause_generation(request: Request, body: PauseRequest) -> Response:
        """Stand still: nothing is computed until /continue_generation."""
        await pause(front, _MODES[body.mode])
        return json_response(Done("Generation is paused."))

    async def continue_generation(request: Request, body: Nothing) -> Response:
        """Go on after /pause_generation."""
        await resume(front)
        return json_response(Done("Generation goes on."))

    def loaded() -> Response:
        return json_response(LoadedAdapters({known.name: known.adapter.path for known in front.adapters.registry}))

    async def load_lora_adapter(request: Request, body: LoadAdapter) -> Response:
        """Load a LoRA adapter from a directory of the server's machine; requests of /generate name it in `lora_path`."""
        await front.adapters.load(body.lora_name, body.lora_path)
        return loaded()

    async def unload_lora_adapter(request: Request, body: UnloadAdapter) -> Response:
        """Take no more requests for a LoRA adapter; those under way go on."""
        await front.adapters.unload(body.lora_name)
        return loaded()

    return [
        post(front, "/load_lora_adapter", LoadAdapter, load_lora_adapter, gives=LoadedAdapters),
        post(front, "/unload_lora_adapter", UnloadAdapter, unload_lora_adapter, gives=LoadedAdapters),
        plain("/flush_cache", flush_cache, gives=Flushed, methods=("GET", "POST")),
        post(front, "/abort_request", AbortRequest, abort_request, gives=Aborted),
        post(front, "/pause_generation", PauseRequest, pause_generation, gives=Done, optional=True),
        post(front, "/continue_generation", Nothing, continue_generation, gives=Done, optional=True),
    ]
