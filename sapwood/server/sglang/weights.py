"""What SGLang's trainers ask: other weights from files, the device's memory for a while, and which weights there are."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.weights import ALL, Given, Held
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.refusals import Refused, Table
from sapwood.server.routes import Described, plain, post
from sapwood.server.sglang import sent
from sapwood.server.sglang.sent import Updated, told
from sapwood.server.sleeping import sleep, wake
from sapwood.server.weights import Mode, Updates, version_of


class FromDisk(msgspec.Struct, kw_only=True):
    """SGLang's fields, of which those that are about its own memory are read and change nothing, and `mode` and `checksums`.

    `model_path` is a directory as a checkpoint is, which has all of the model's weights, or one safetensors file of some of them; it may
    lie in shared memory. `mode` says what becomes of requests under way: they end first, end with what they have said, or go on with
    the new weights; `abort_all_requests` is an older spelling of abort. `weight_version` is what the weights are called from then on,
    `checksums` are tensors' SHA-256 in hexadecimal, which are compared first.
    """

    model_path: str
    load_format: str | None = None
    weight_version: str | None = None
    abort_all_requests: bool = False
    mode: Mode | None = None
    checksums: dict[str, str] = {}
    flush_cache: bool = True
    is_async: bool = False
    torch_empty_cache: bool = False
    keep_pause: bool = False
    recapture_cuda_graph: bool = False
    token_step: Annotated[int, Meta(ge=0, le=2**53)] = 0


class FromTensors(msgspec.Struct, kw_only=True):
    """Some of the model's weights, in a safetensors file, usually in shared memory (/dev/shm). The other fields are as those of
    /update_weights_from_disk."""

    path: str
    weight_version: str | None = None
    mode: Mode = "finish"
    checksums: dict[str, str] = {}
    flush_cache: bool = True


class Memory(msgspec.Struct, kw_only=True):
    """`tags` are what is meant: weights, kv_cache, or both where nothing is said."""

    tags: list[Held] | None = None


class Occupied(msgspec.Struct):
    """What is given back of the device's memory."""

    released: list[Held]


class Version(msgspec.Struct):
    weight_version: str


_PICKLED: Table = {
    "serialized_named_tensors": Refused(
        "they are pickled, which can run code: write a safetensors file, and give its path"
    ),
}


def routes(front: Front) -> list[Described]:
    """For operators."""
    updates = Updates(front)

    async def update_weights_from_disk(request: Request, body: FromDisk) -> Response:
        """Put a checkpoint's weights in the place of the model's, while it runs."""
        given = Given(
            path=body.model_path, whole=not body.model_path.endswith(".safetensors"), checksums=body.checksums
        )
        mode: Mode = body.mode or ("abort" if body.abort_all_requests else "finish")
        answer = await updates.take(given, mode=mode, version=body.weight_version, param="model_path")
        return json_response(told(answer))

    async def update_weights_from_tensor(request: Request, body: FromTensors) -> Response:
        """Put some tensors in the place of the model's, while it runs."""
        given = Given(path=body.path, whole=False, checksums=body.checksums)
        answer = await updates.take(given, mode=body.mode, version=body.weight_version, param="path")
        return json_response(told(answer))

    async def release_memory_occupation(request: Request, body: Memory) -> Response:
        """Give back the device's memory: weights to the host's, what is cached is dropped. Requests wait."""
        return json_response(Occupied(await sleep(front, held=ALL if body.tags is None else body.tags)))

    async def resume_memory_occupation(request: Request, body: Memory) -> Response:
        """Take it again."""
        return json_response(Occupied(await wake(front, ALL if body.tags is None else body.tags)))

    return [
        post(front, "/update_weights_from_disk", FromDisk, update_weights_from_disk, gives=Updated),
        post(
            front,
            "/update_weights_from_tensor",
            FromTensors,
            update_weights_from_tensor,
            gives=Updated,
            refused=_PICKLED,
        ),
        *sent.routes(front, updates),
        post(front, "/release_memory_occupation", Memory, release_memory_occupation, gives=Occupied, optional=True),
        post(front, "/resume_memory_occupation", Memory, resume_memory_occupation, gives=Occupied, optional=True),
    ]


def looks(front: Front) -> list[Described]:
    """For everybody."""

    async def weight_version(request: Request) -> Response:
        """What the weights are called that compute now."""
        return json_response(Version(await version_of(front)))

    return [
        plain("/weight_version", weight_version, gives=Version),
        plain("/get_weight_version", weight_version, gives=Version),
    ]
