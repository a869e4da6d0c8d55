"""Weights that a trainer sends in a group of processes, at SGLang's routes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.base.weights import Backend, Group, Sent
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.refusals import Refused, Table
from sapwood.server.routes import Described, post
from sapwood.server.weights import Mode, Updates


class InitGroup(msgspec.Struct, kw_only=True):
    """Where a trainer and the engine meet: the trainer is rank 0 of `world_size` processes at `master_address`, the engine's ranks are those from
    `rank_offset` on."""

    master_address: str
    master_port: Annotated[int, Meta(ge=1, le=65535)]
    rank_offset: Annotated[int, Meta(ge=1, le=2**20)]
    world_size: Annotated[int, Meta(ge=2, le=2**20)]
    group_name: str = "weight_update_group"
    backend: Backend = "nccl"


class DestroyGroup(msgspec.Struct, kw_only=True):
    group_name: str = "weight_update_group"


class FromDistributed(msgspec.Struct, kw_only=True):
    """Tensors that the trainer of a group broadcasts, in this order. The other fields are as those of /update_weights_from_disk."""

    names: Annotated[list[str], Meta(min_length=1)]
    dtypes: list[str]
    shapes: list[list[Annotated[int, Meta(ge=0, le=2**40)]]]
    group_name: str = "weight_update_group"
    weight_version: str | None = None
    abort_all_requests: bool = False
    mode: Mode | None = None
    checksums: dict[str, str] = {}
    flush_cache: bool = True


class Grouped(msgspec.Struct):
    message: str
    success: bool = True


class Updated(msgspec.Struct):
    message: str
    weight_version: str
    seconds: float
    success: bool = True
    num_paused_requests: int = 0


_BUCKETS: Table = {
    "load_format": Refused("tensors are sent one by one"),
    **{name: Refused(f"give {name}s") for name in ("name", "dtype", "shape")},
}


def routes(front: Front, updates: Updates) -> list[Described]:
    """For operators."""

    async def init_weights_update_group(request: Request, body: InitGroup) -> Response:
        """Have the engine meet a trainer that will send weights. Answers when all processes of the group are there."""
        await updates.join(Group(**msgspec.structs.asdict(body)))
        return json_response(Grouped(f"The group {body.group_name} has come about."))

    async def destroy_weights_update_group(request: Request, body: DestroyGroup) -> Response:
        """Have the engine leave such a group."""
        await updates.leave(body.group_name)
        return json_response(Grouped(f"The group {body.group_name} is left."))

    async def update_weights_from_distributed(request: Request, body: FromDistributed) -> Response:
        """Put the tensors that a trainer sends now in the place of the model's, while it runs."""
        for name, field in (("dtypes", body.dtypes), ("shapes", body.shapes)):
            if len(field) != len(body.names):
                raise RequestError(f"{name} has {len(field)} entries for {len(body.names)} names.", param=name)
        sent = Sent(names=body.names, dtypes=body.dtypes, shapes=body.shapes, group_name=body.group_name)
        mode: Mode = body.mode or ("abort" if body.abort_all_requests else "finish")
        answer = await updates.receive(sent, mode=mode, version=body.weight_version, checksums=body.checksums)
        return json_response(told(answer))

    return [
        post(front, "/init_weights_update_group", InitGroup, init_weights_update_group, gives=Grouped),
        post(
            front,
            "/update_weights_from_distributed",
            FromDistributed,
            update_weights_from_distributed,
            gives=Updated,
            refused=_BUCKETS,
        ),
        post(
            front,
            "/destroy_weights_update_group",
            DestroyGroup,
            destroy_weights_update_group,
            gives=Grouped,
            optional=True,
        ),
    ]


def told(answer: dict[str, Any]) -> Updated:
    """What an engine answered to an update."""
    version, seconds = answer["weight_version"], answer["seconds"]
    return Updated(f"The weights are those of version {version}.", version, seconds)
