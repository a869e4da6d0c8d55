"""Paths whose model the table names, and edits by the size of the file."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sapwood.base.errors import ConfigError
from sapwood.route.sizes import estimated
from sapwood.route.table import checked
from tests.route.mock import Mock, routed
from tests.route.test_proxy import run

TABLE = {
    "paths": {"/v1/embeddings": "minilm", "/v1/rerank": "ranker", "/v1/audio/transcriptions": "ears"},
    "apply": [{"model": "quick", "up_to": 1000}, {"model": "big"}],
}


def test_a_coding_agent_needs_no_names() -> None:
    async def case() -> None:
        mocks = [Mock(name, (name,)) for name in ("minilm", "ranker", "quick", "big")]
        async with routed(*mocks, table=TABLE) as (client, _):
            for path, body, model in (
                ("/v1/embeddings", {"input": "x"}, "minilm"),
                ("/v1/embeddings", {"input": "x", "model": "auto"}, "minilm"),
                ("/v1/embeddings", {"input": "x", "model": "big"}, "big"),
                ("/v1/rerank", {"query": "x", "documents": ["y"]}, "ranker"),
                ("/v1/apply", {"code": "a = 1\n", "update": "a = 2\n"}, "quick"),
                ("/v1/apply", {"code": "a = 1\n" * 2000, "update": "a = 2\n", "model": "auto"}, "big"),
                ("/v1/apply", {"code": "a = 1\n" * 2000, "update": "a = 2\n", "model": "quick"}, "quick"),
            ):
                async with client.post(path, json=body) as answer:
                    assert (await answer.json())["by"] == model, (path, answer.status)
                    named = answer.headers.get("x-sapwood-rule", "")
                    assert named.startswith(f"{model}; ") is (body.get("model") in (None, "auto"))
        assert mocks[2].bodies[0] == {"code": "a = 1\n", "update": "a = 2\n", "model": "quick"}

    run(case())


class Ears(Mock):
    """Says what model a form names."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        return web.json_response({"by": self.name, "model": form.get("model")})


def test_forms_have_models_of_their_path_too() -> None:
    async def case() -> None:
        table = TABLE | {"auto": {"heard": {"to": ["ears"], "rule": [{"name": "r", "to": ["none"]}]}}}
        async with routed(Ears("ears", ("ears",)), table=table) as (client, _):
            for name, model in (("auto", "ears"), ("heard", "ears"), (None, None)):
                form = aiohttp.FormData({} if name is None else {"model": name})
                form.add_field("more", b"x", filename="x.wav")
                async with client.post("/v1/audio/transcriptions", data=form) as answer:
                    assert (await answer.json()) == {"by": "ears", "model": model}

    run(case())


def test_sizes_are_of_bytes() -> None:
    assert estimated("") == 0 and estimated("word " * 700) == 1000 and estimated("語") == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"paths": {"/v1/files": "m"}}, r"\[paths\] has '/v1/files', which is not carried"),
        ({"paths": {"/v1/apply": "m"}, "apply": [{"model": "m"}]}, "either in"),
        ({"apply": [{"model": "m"}, {"model": "n", "up_to": 3}]}, "up_to growing"),
        ({"apply": [{"model": "m", "up_to": 3}]}, "the last without it"),
        ({"apply": [{"model": "m", "up_to": 3}, {"model": "n", "up_to": 2}, {"model": "o"}]}, "up_to growing"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked({"server": [{"url": "http://a"}], **raw}, "t.toml")
