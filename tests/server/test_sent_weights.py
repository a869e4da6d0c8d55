"""Weights that a trainer's process sends in a group, to an engine that serves meanwhile."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from sapwood import LLM
from tests.engine.test_renewal import GREEDY, OPTIONS, PROMPTS, other
from tests.parallel import trainer
from tests.server.test_weights import served
from tests.waiting import SECONDS, within

pytestmark = pytest.mark.anyio

NAME = "weights"


class Trainer:
    """Its process, and where it waits for an engine of so many ranks."""

    def __init__(self, ranks: int = 1) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.port = int(one.getsockname()[1])
        self.world = ranks + 1
        command = [sys.executable, trainer.__file__, str(self.port), str(self.world), NAME]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    async def join(self, http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
        where = {"master_address": "127.0.0.1", "master_port": self.port, "rank_offset": 1, "world_size": self.world}
        body = where | {"group_name": NAME, "backend": "gloo"} | fields
        return await within(http.post("/init_weights_update_group", json=body))

    async def send(self, http: httpx.AsyncClient, file: Path, **fields: Any) -> httpx.Response:
        """Every tensor of a file, and what the server says to them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{file}\n")
        self.process.stdin.flush()
        body = specs(file) | {"group_name": NAME} | fields
        return await within(http.post("/update_weights_from_distributed", json=body))


@contextmanager
def training(ranks: int = 1) -> Iterator[Trainer]:
    made = Trainer(ranks)
    try:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()
        assert made.process.wait(SECONDS) == 0
    finally:
        made.process.kill()


def specs(file: Path) -> dict[str, Any]:
    tensors = sorted(load_file(file).items())
    return {
        "names": [name for name, _ in tensors],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        "shapes": [list(tensor.shape) for _, tensor in tensors],
    }


async def said(http: httpx.AsyncClient) -> list[list[int]]:
    body = {
        "input_ids": [*map(list, PROMPTS)],
        "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True},
    }
    reply = (await within(http.post("/generate", json=body))).raise_for_status().json()
    return [one["output_ids"] for one in reply]


async def check(model: Path, tmp_path: Path, ranks: int, **options: Any) -> None:
    new = other(model, tmp_path / "new") / "model.safetensors"
    wanted = [one.token_ids for one in LLM(str(new.parent), **OPTIONS).generate(PROMPTS, GREEDY)]
    tensors = load_file(new)
    save_file({"nobody": next(iter(tensors.values()))}, tmp_path / "strange.safetensors")
    name = next(iter(tensors))
    right = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
    with training(ranks) as sender:
        async with served(model, **options) as http:
            before = await said(http)
            assert (await sender.join(http)).json()["success"]
            taken = await sender.join(http)
            assert taken.status_code == 400 and "is taken" in taken.text
            strange = await sender.send(http, tmp_path / "strange.safetensors")
            assert strange.status_code == 400 and "nobody" in strange.text
            wrong = await sender.send(http, new, checksums={name: "0" * 64})
            assert wrong.status_code == 400 and name in wrong.text
            assert await said(http) == before, "all or nothing"
            reply = await sender.send(http, new, weight_version="step-9", checksums={name: right}, mode="keep")
            assert reply.json()["weight_version"] == "step-9"
            assert await said(http) == wanted != before
            left = [await http.post("/destroy_weights_update_group", json={"group_name": NAME}) for _ in range(2)]
            assert [one.status_code for one in left] == [200, 400]


async def test_what_a_trainer_sends_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    await check(tiny_model, tmp_path, 1)


@pytest.mark.slow
async def test_every_rank_is_sent_all(tiny_model: Path, tmp_path: Path) -> None:
    with training(2) as sender:
        new = other(tiny_model, tmp_path / "new") / "model.safetensors"
        async with served(tiny_model, tensor_parallel_size=2) as http:
            assert (await sender.join(http)).json()["success"]
            assert (await sender.send(http, new)).json()["weight_version"] == "1"
            found = await said(http)
    assert found == [one.token_ids for one in LLM(str(new.parent), **OPTIONS).generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize(
    ("route", "body", "param", "message"),
    [
        ("/init_weights_update_group", {"backend": "nccl"}, "group_name", "Give 'gloo'"),
        ("/init_weights_update_group", {"rank_offset": 7}, "group_name", "rank 7 of a world of 2"),
        ("/init_weights_update_group", {"backend": "mpi"}, "backend", "mpi"),
        ("/update_weights_from_distributed", {}, "names", "there is no group"),
        ("/update_weights_from_distributed", {"shapes": []}, "shapes", "0 entries for 1 names"),
        ("/update_weights_from_distributed", {"load_format": "flattened_bucket"}, "load_format", "one by one"),
        ("/update_weights_from_distributed", {"name": "x"}, "name", "give names"),
    ],
)
async def test_refused_by_name(tiny_model: Path, route: str, body: dict[str, Any], param: str, message: str) -> None:
    whole = {
        "/init_weights_update_group": {
            "master_address": "127.0.0.1",
            "master_port": 9,
            "rank_offset": 1,
            "world_size": 2,
        },
        "/update_weights_from_distributed": {"names": ["x"], "dtypes": ["float32"], "shapes": [[1]]},
    }[route]
    async with served(tiny_model) as http:
        reply = await http.post(route, json=whole | body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param and message in reply.text
