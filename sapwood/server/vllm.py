"""vLLM's own routes, where they are no other's too."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sapwood.base.errors import Overloaded
from sapwood.base.weights import ALL, Held, Level
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.health import health_of
from sapwood.server.pausing import flush, is_paused, pause, resume
from sapwood.server.routes import Described, Media, converted, plain, post, query_of
from sapwood.server.sleeping import away, sleep, wake


class ServerLoad(msgspec.Struct):
    """Outputs under way, those that wait included."""

    server_load: int


class TokenizerInfo(msgspec.Struct):
    """`eos_tokens` are all that end an output; `chat_template` has several by name where the model has."""

    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    eos_tokens: list[str]
    special_tokens: dict[str, int]
    chat_template: str | dict[str, str] | None


class Paused(msgspec.Struct):
    is_paused: bool


class Status(msgspec.Struct):
    status: str


class Reset(msgspec.Struct):
    """`message` says what there was to do."""

    message: str


class PauseQuery(msgspec.Struct):
    """What becomes of requests under way: they end with what they have said, run to their ends, or stay where they are. The cache
    is cleared unless they stay, or `clear_cache` says no. `wait_for_inflight_requests` is an older spelling of wait."""

    mode: Literal["abort", "wait", "keep"] = "abort"
    clear_cache: bool = True
    wait_for_inflight_requests: bool = False


class Sleeping(msgspec.Struct):
    is_sleeping: bool


class SleepQuery(msgspec.Struct):
    """At level 1 weights go to the host's memory, at level 2 nowhere: they are read again. Requests under way go on when the engine is
    woken (keep), run to their ends first (wait), or end with what they have said (abort)."""

    level: Level = 1
    mode: Literal["keep", "wait", "abort"] = "keep"


class WakeQuery(msgspec.Struct):
    """`tags` are what is taken again, weights or kv_cache; given twice, both, and so without any."""

    tags: list[Held] = []


class ResetQuery(msgspec.Struct):
    """With `reset_running_requests` those of requests that run too, which compute them again."""

    reset_running_requests: bool = False


class LoadAdapter(msgspec.Struct, kw_only=True):
    """An adapter's name from now on, and the directory of its files. With `load_inplace` it takes the place of another of that name."""

    lora_name: str
    lora_path: str
    load_inplace: bool | None = None


class UnloadAdapter(msgspec.Struct, kw_only=True):
    """`lora_int_id` means nothing here."""

    lora_name: str
    lora_int_id: Annotated[int, Meta(ge=0, le=2**53)] | None = None


def routes(front: Front) -> list[Described]:
    """For everybody."""

    async def load(request: Request) -> Response:
        """How much is going on, as balancers ask."""
        return json_response(ServerLoad(len(front.flights)))

    async def ping(request: Request) -> Response:
        """200 while requests are taken, 503 with the reason while they are not, as SageMaker asks."""
        if reason := (await health_of(front)).reason:
            raise Overloaded(reason)
        return Response()

    async def tokenizer_info(request: Request) -> Response:
        """The tokenizer, and the template of conversations."""
        return json_response(_tokenizer(front))

    async def is_sleeping(request: Request) -> Response:
        """Whether the engine has given back its device's memory, or a part of it."""
        return json_response(Sleeping(bool(await away(front))))

    async def paused(request: Request) -> Response:
        """Whether the server stands still."""
        return json_response(Paused(await is_paused(front)))

    return [
        plain("/load", load, gives=ServerLoad),
        plain("/ping", ping, gives=None, methods=("GET", "POST")),
        plain("/tokenizer_info", tokenizer_info, gives=TokenizerInfo),
        plain("/is_paused", paused, gives=Paused),
        plain("/is_sleeping", is_sleeping, gives=Sleeping),
    ]


def control(front: Front) -> list[Described]:
    """For operators."""

    async def pause_(request: Request) -> Response:
        """Stand still: nothing is computed until /resume, and new requests wait."""
        query = query_of(request, PauseQuery)
        mode: Literal["abort", "wait", "keep"] = "wait" if query.wait_for_inflight_requests else query.mode
        await pause(front, mode)
        if query.clear_cache and mode != "keep":
            await flush(front)
        return json_response(Status("paused"))

    async def resume_(request: Request) -> Response:
        """Go on after /pause."""
        await resume(front)
        return json_response(Status("resumed"))

    async def load_lora_adapter(request: Request, body: LoadAdapter) -> Response:
        """Load a LoRA adapter from a directory of the server's machine; requests ask for it by its name as their model."""
        await front.adapters.load(body.lora_name, body.lora_path, again=bool(body.load_inplace))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_lora_adapter(request: Request, body: UnloadAdapter) -> Response:
        """Take no more requests for a LoRA adapter; those under way go on."""
        await front.adapters.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return [
        post(front, "/v1/load_lora_adapter", LoadAdapter, load_lora_adapter, gives=Media("text/plain")),
        post(front, "/v1/unload_lora_adapter", UnloadAdapter, unload_lora_adapter, gives=Media("text/plain")),
        plain("/pause", pause_, query=PauseQuery, gives=Status, methods=("POST",)),
        plain("/resume", resume_, gives=Status, methods=("POST",)),
        *_forgetting(front),
    ]


def _forgetting(front: Front) -> list[Described]:
    """What is cached."""

    async def reset_prefix_cache(request: Request) -> Response:
        """Forget cached prefixes."""
        freed = await flush(front, running=query_of(request, ResetQuery).reset_running_requests)
        return json_response(Reset(f"{freed} pages have been freed."))

    async def reset_mm_cache(request: Request) -> Response:
        """Forget images and recordings as they were prepared for the model."""
        count = 0 if isinstance(front.gallery, str) else front.gallery.clear()
        return json_response(Reset(f"{count} prepared inputs have been forgotten."))

    async def reset_encoder_cache(request: Request) -> Response:
        """Forget what encoders have made of inputs; what runs has its own encoded again where it needs it."""
        freed = (await front.engine.control("flush_encoders"))["freed_inputs"]
        return json_response(Reset(f"{freed} encoded inputs have been forgotten."))

    return [
        plain("/reset_prefix_cache", reset_prefix_cache, query=ResetQuery, gives=Reset, methods=("POST",)),
        plain("/reset_mm_cache", reset_mm_cache, gives=Reset, methods=("POST",)),
        plain("/reset_encoder_cache", reset_encoder_cache, gives=Reset, methods=("POST",)),
    ]


def sleeping(front: Front) -> list[Described]:
    """For operators: sleep."""

    async def sleep_(request: Request) -> Response:
        """Give back the device's memory until /wake_up; requests wait meanwhile, or are refused (--while-asleep)."""
        query = query_of(request, SleepQuery)
        await sleep(front, level=query.level, mode=query.mode)
        return json_response(Status("asleep"))

    async def wake_up(request: Request) -> Response:
        """Take the device's memory again, and go on."""
        tags = {"tags": request.query_params.getlist("tags")}
        left = await wake(front, converted(tags, WakeQuery).tags or ALL)
        return json_response(Status("awake" if not left else "asleep"))

    return [
        plain("/sleep", sleep_, query=SleepQuery, gives=Status, methods=("POST",)),
        plain("/wake_up", wake_up, query=WakeQuery, gives=Status, methods=("POST",)),
    ]


def _tokenizer(front: Front) -> TokenizerInfo:
    text, special = front.text, front.text.special_tokens
    names = {id: name for name, id in special.items()}
    ends = [names.get(id, text.token_text(id)) for id in text.eos_ids]
    templates = text.templates
    return TokenizerInfo(
        vocab_size=front.facts.vocab_size,
        model_max_length=front.facts.max_model_len,
        bos_token=None if text.bos_id is None else names.get(text.bos_id, text.token_text(text.bos_id)),
        eos_token=ends[0] if ends else None,
        eos_tokens=ends,
        special_tokens=dict(special),
        chat_template=None
        if not templates
        else templates["default"]
        if [*templates] == ["default"]
        else dict(templates),
    )
