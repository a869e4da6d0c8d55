"""Every body of every route is bounded: in bytes, in depth, and in each of its whole numbers. Routes are found in the application."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import inspect
from starlette.applications import Starlette

from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.server.routes import Described, Media
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

LIMIT = 20_000
JSON = {"content-type": "application/json", "x-api-key": "boss"}
BOUNDED_BY_THE_BODY = (
    inspect.StrType, inspect.BytesType, inspect.ListType, inspect.DictType, inspect.VarTupleType, inspect.AnyType,
    inspect.RawType, inspect.SetType,
)  # fmt: skip
"""Texts and collections: no larger than the body, whose bytes are bounded. What they cost beyond is bounded where they are used:
outputs of a request (MAX_CHOICES), stops, masked and biased tokens, the prompt's length (Front and SamplingParams.check), names and
arguments of tools by the grammar's budget."""
IDS = {"logit_bias{}", "query[]"} | {
    f"{name}{of}" for name in ("prompt", "input_ids", "input", "inputs", "items") for of in ("[]", "[][]")
}
"""Ids of tokens: there may be many, so that they are not compared as they are read, but all at once with the vocabulary."""
HARMLESS = (
    inspect.BoolType, inspect.NoneType, inspect.FloatType, inspect.LiteralType, inspect.EnumType,
    inspect.DateTimeType,
)  # fmt: skip


class Inner(msgspec.Struct):
    many: dict[str, list[int]]


class Outer(msgspec.Struct):
    inner: Inner | None


@pytest.fixture
def config() -> Config:
    return Config(server=ServerConfig(max_body_bytes=LIMIT, admin_api_key="boss"))


def described(app: Starlette) -> list[Described]:
    return [route for route in app.routes if isinstance(route, Described)]


def unbounded(kind: inspect.Type, path: str, seen: set[type]) -> Iterator[str]:
    """Whole numbers that may be of any size, and types that nobody has thought of here."""
    match kind:
        case inspect.IntType():
            if (kind.ge is None and kind.gt is None) or (kind.le is None and kind.lt is None):
                yield path
        case inspect.StructType():
            if kind.cls not in seen:
                for field in kind.fields:
                    yield from unbounded(field.type, f"{path}.{field.name}", seen | {kind.cls})
        case inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, path, seen)
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType():
            yield from unbounded(kind.item_type, f"{path}[]", seen)
        case inspect.TupleType():
            for one in kind.item_types:
                yield from unbounded(one, f"{path}[]", seen)
        case inspect.DictType():
            yield from unbounded(kind.key_type, f"{path}{{}}", seen)
            yield from unbounded(kind.value_type, f"{path}{{}}", seen)
        case inspect.Metadata():
            yield from unbounded(kind.type, path, seen)
        case _ if not isinstance(kind, (*BOUNDED_BY_THE_BODY, *HARMLESS)):
            yield f"{path}: {type(kind).__name__}, of which this test knows nothing"


async def test_every_whole_number_is_bounded(app: Starlette) -> None:
    found: list[str] = []
    for route in described(app):
        for kind in (route.told.body, route.told.query):
            if kind is not None and not isinstance(kind, Media):
                found += unbounded(inspect.type_info(kind), f"{route.path} {kind.__name__}", set())
    assert {one.split(".", 1)[1] for one in found} <= IDS, "\n".join(found)


@pytest.mark.parametrize("number", ["-1", "1000000", str(2**63), f"1{'0' * 30}", f"1{'0' * 5000}"], ids=len)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", '{"prompt": [%d]}'),
        ("/v1/completions", '{"prompt": [[1, %d]]}'),
        ("/v1/completions", '{"prompt": "x", "logit_bias": {"%d": 1}}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"%d": 1}}'),
        ("/v1/responses", '{"input": "x", "logit_bias": {"%d": 1}}'),
        ("/generate", '{"input_ids": [%d]}'),
        ("/generate", '{"input_ids": [[1], [%d]]}'),
    ],
)
async def test_ids_are_bounded_by_the_vocabulary(http: httpx.AsyncClient, path: str, body: str, number: str) -> None:
    reply = await http.post(path, content=body.replace("%d", number), headers=JSON)
    assert reply.status_code == 400, reply.text


def test_what_is_not_bounded_is_seen() -> None:
    assert [*unbounded(inspect.type_info(Outer), "x", set())] == ["x.inner.many{}[]"]


def paths(app: Starlette) -> list[tuple[str, str]]:
    """Methods and paths of all routes that read a body."""
    return [
        (method, route.path_format.replace("{", "").replace("}", ""))
        for route in described(app)
        if route.told.body is not None
        for method in (route.methods or set()) - {"GET", "HEAD"}
    ]


async def test_every_body_has_a_limit(app: Starlette, http: httpx.AsyncClient) -> None:
    found = paths(app)
    assert ("POST", "/v1/chat/completions") in found and len(found) > 8
    for method, path in found:
        reply = await http.request(method, path, content=b" " * (LIMIT + 1), headers=JSON)
        assert reply.status_code in (404, 413, 415), (method, path, reply.text)


async def test_no_depth_harms(app: Starlette, http: httpx.AsyncClient) -> None:
    for method, path in paths(app):
        for content in (b"[" * 9000, b'{"a":' * 3000, b'{"messages":' + b"[" * 9000 + b"]" * 9000 + b"}"):
            reply = await http.request(method, path, content=content, headers=JSON)
            assert 400 <= reply.status_code < 500, (method, path, reply.text)


async def test_no_other_origin_is_let_in_unless_told(app: Starlette, http: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for route in described(app):
        path = route.path_format.replace("{", "").replace("}", "")
        for method in ("OPTIONS", *sorted((route.methods or set()) & {"HEAD"})):
            reply = await http.request(method, path, headers=asked)
            assert not [name for name in reply.headers if name.startswith("access-control-")], path


async def test_a_limit_is_the_operator_s(engine: FakeEngine, text: TextModel, config: Config) -> None:
    server = dataclasses.replace(config.server, max_body_bytes=100)
    app = create_app(engine, text, Config(server=server), MODEL)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as http:
        reply = await http.post("/v1/completions", content=b" " * 101, headers=JSON)
        assert reply.status_code == 413 and "100 bytes" in reply.json()["error"]["message"]
    await app.state.front.close()
