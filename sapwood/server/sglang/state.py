"""What SGLang's routers and clients ask of a server: whether it makes tokens, what it is, how much is going on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood import __version__
from sapwood.base.errors import Overloaded
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Facts
from sapwood.engine.client import EngineClient
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.generation import Prompt, choices_of, complete
from sapwood.server.health import health_of
from sapwood.server.load import load_of
from sapwood.server.pausing import is_paused
from sapwood.server.routes import Described, plain

_TOKEN_SECONDS = 20.0


class ModelInfo(msgspec.Struct):
    model_path: str
    tokenizer_path: str
    preferred_sampling_params: Mapping[str, Any]
    max_model_len: int
    weight_version: str = "default"
    is_generation: bool = True
    has_image_understanding: bool = False
    has_audio_understanding: bool = False


class ServerInfo(msgspec.Struct):
    """`config` are the options, but for those of the HTTP front, which concern nobody else."""

    version: str
    model_path: str
    served_model_name: str
    max_total_num_tokens: int
    max_running_requests: int
    max_req_input_len: int
    facts: Facts
    config: dict[str, Any]
    internal_states: list[dict[str, Any]]


class LoadOfRank(msgspec.Struct):
    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    max_running_requests: int
    token_usage: float
    paused: bool
    dp_rank: int = 0


class Aggregate(msgspec.Struct):
    total_running_reqs: int
    total_waiting_reqs: int
    total_reqs: int
    avg_token_usage: float


class Loads(msgspec.Struct):
    timestamp: str
    version: str
    loads: list[LoadOfRank]
    aggregate: Aggregate
    dp_rank_count: int = 1


class OldLoad(msgspec.Struct):
    num_reqs: int
    num_waiting_reqs: int
    num_tokens: int
    dp_rank: int = 0


def routes(front: Front) -> list[Described]:
    async def health_generate(request: Request) -> Response:
        """200 if a token can be made now, which is tried, 503 with the reason if not."""
        await request.body()
        if reason := (await health_of(front)).reason:
            raise Overloaded(reason)
        await front.attended(request.receive, _try(front))
        return Response()

    async def model_info(request: Request) -> Response:
        """The model, and what its requests have where they say nothing."""
        model = front.config.model
        path, longest = model.tokenizer or model.model, front.facts.max_model_len
        told = ModelInfo(model.model, path, front.defaults, longest, front.engine.weight_version)
        return json_response(told)

    async def server_info(request: Request) -> Response:
        """The options, what was decided, and what the engine says of itself at this moment."""
        return json_response(_info(front, await _states(front)))

    async def loads(request: Request) -> Response:
        """How much is going on, by the engine's last report."""
        ranks = [_load(number, one) for number, one in enumerate(front.engine.replicas)]
        now = load_of(front.engine)
        total = Aggregate(now.running, now.waiting, now.running + now.waiting, now.usage)
        return json_response(Loads(datetime.now(UTC).isoformat(), __version__, ranks, total, len(ranks)))

    async def get_load(request: Request) -> Response:
        """The same in few words."""
        found = [load_of(one) for one in front.engine.replicas]
        loads = [
            OldLoad(now.running + now.waiting, now.waiting, now.used_tokens, number) for number, now in enumerate(found)
        ]
        return json_response(loads)

    async def internal_state(request: Request) -> Response:
        """What the engine counts."""
        return json_response(await _states(front))

    return [
        plain("/health_generate", health_generate, gives=None),
        plain("/model_info", model_info, gives=ModelInfo),
        plain("/get_model_info", model_info, gives=ModelInfo),
        plain("/server_info", server_info, gives=ServerInfo),
        plain("/get_server_info", server_info, gives=ServerInfo),
        plain("/get_internal_state", internal_state, gives=list[dict[str, Any]]),
        plain("/v1/loads", loads, gives=Loads),
        plain("/get_load", get_load, gives=list[OldLoad]),
    ]


async def _try(front: Front) -> None:
    """Make a token. Raises Overloaded if none comes in time."""
    if await is_paused(front):
        raise Overloaded("The server is paused.")
    tokens = front.text.encode("Hi") or [0]
    choices = choices_of([(Prompt(tokens, "prompt"), SamplingParams(max_tokens=1, temperature=0.0))])
    try:
        async with asyncio.timeout(_TOKEN_SECONDS):
            await complete(front, choices)
    except TimeoutError:
        raise Overloaded(f"No token has come in {_TOKEN_SECONDS:g} s.") from None


def _load(number: int, engine: EngineClient) -> LoadOfRank:
    now, most = load_of(engine), engine.facts.max_num_seqs
    return LoadOfRank(now.running, now.waiting, now.used_tokens, now.most_tokens, most, now.usage, now.paused, number)


async def _states(front: Front) -> list[dict[str, Any]]:
    """Of all engines that live. Raises EngineDead if none does."""
    live = [one for one in front.engine.replicas if one.dead is None] or [front.engine]
    return [await one.control("status") for one in live]


def _info(front: Front, states: list[dict[str, Any]]) -> ServerInfo:
    facts, sections = front.facts, asdict(front.config)
    del sections["server"]
    return ServerInfo(
        version=__version__,
        model_path=front.config.model.model,
        served_model_name=front.model_name,
        max_total_num_tokens=load_of(front.engine).most_tokens,
        max_running_requests=facts.max_num_seqs,
        max_req_input_len=facts.max_model_len - 1,
        facts=facts,
        config=sections,
        internal_states=states,
    )
