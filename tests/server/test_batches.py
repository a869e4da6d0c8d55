"""Files and batches through the official client: all lines once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from sapwood.base.wire import Stats
from sapwood.config.flags import from_options
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, overloaded
from tests.server.test_chat import ANSWER, HELLO
from tests.waiting import SECONDS

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


def lines_of(count: int, url: str = CHAT, **body: Any) -> list[dict[str, Any]]:
    body = body or {"messages": HELLO}
    return [{"custom_id": f"line {n}", "method": "POST", "url": url, "body": body} for n in range(count)]


def jsonl(lines: list[Any]) -> bytes:
    return "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines).encode()


async def upload(client: AsyncOpenAI, lines: list[Any]) -> str:
    return (await client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")).id


async def begin(client: AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Any:
    file = await upload(client, lines)
    return await client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **more)


async def over(client: AsyncOpenAI, id: str) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            batch = await client.batches.retrieve(id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.01)


async def results(client: AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    return [json.loads(line) for line in (await client.files.content(file)).text.splitlines()]


async def test_files(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    content = jsonl(lines_of(2)) + b"\r\n--\r\n\xff\x00"
    made = await client.files.create(
        file=('naïve "in".jsonl', content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.object, made.bytes, made.purpose, made.status) == ("file", len(content), "batch", "processed")
    assert made.expires_at == made.created_at + 3600 and made.filename.startswith("na")
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == content
    other = await client.files.create(file=b"x", purpose="batch")
    assert [file.id async for file in client.files.list(limit=1)] == [other.id, made.id]
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []
    assert (await client.files.delete(made.id)).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFoundError, match="There is no file"):
            await gone(made.id)
    for wrong in ("fine-tune", "assistants"):
        with pytest.raises(BadRequestError, match="purpose must be batch"):
            await client.files.create(file=b"x", purpose=wrong)  # type: ignore[arg-type]
    assert (await http.post("/v1/files", json={})).status_code == 415
    assert (await http.post("/v1/files", data={"purpose": "batch"}, files={"other": b"x"})).status_code == 400


async def test_files_expire(app: Any, client: AsyncOpenAI) -> None:
    id = await upload(client, lines_of(1))

    def age(books: Any) -> None:
        told = json.loads(books.get("file", "", id).body)
        books.tell(id, json.dumps(told | {"expires_at": 1}))

    await app.state.front.store.run(age)
    with pytest.raises(NotFoundError):
        await client.files.retrieve(id)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"messages": HELLO}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 99}),
        ("/v1/responses", {"input": "hello"}),
    ],
)
async def test_a_batch(client: AsyncOpenAI, engine: FakeEngine, url: str, body: dict[str, Any]) -> None:
    lines = [*lines_of(3, url, **body), "", {**lines_of(1, url, **body, model="other")[0], "custom_id": "wrong"}]
    made = await begin(client, lines, url, metadata={"a": "b"})
    assert (made.status, made.metadata, made.input_file_id[:5]) == ("validating", {"a": "b"}, "file-")
    done = await over(client, made.id)
    assert done.status == "completed" and done.completed_at >= done.finalizing_at >= done.in_progress_at
    assert done.request_counts.to_dict() == {"total": 4, "completed": 3, "failed": 1}
    answers, errors = await results(client, done.output_file_id), await results(client, done.error_file_id)
    assert [answer["custom_id"] for answer in answers] == ["line 0", "line 1", "line 2"]
    for answer in answers:
        response = answer["response"]
        assert (response["status_code"], answer["error"]) == (200, None) and response["request_id"]
        assert ANSWER in json.dumps(response["body"], ensure_ascii=False)
    assert [(error["custom_id"], error["response"]["status_code"]) for error in errors] == [("wrong", 404)]
    assert errors[0]["response"]["body"]["error"]["code"] == "model_not_found"
    used = [answer["response"]["body"]["usage"]["total_tokens"] for answer in answers]
    assert done.usage.total_tokens == sum(used) > 0
    assert all(asked.priority == -(2**31) for asked in engine.asked)
    assert [batch.id async for batch in client.batches.list()] == [made.id]
    assert [file.purpose async for file in client.files.list()] == ["batch_output", "batch_output", "batch"]


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([], "empty_file", None),
        ([*lines_of(1), "{"], "invalid_json_line", 2),
        ([{"custom_id": "x"}], "invalid_line", 1),
        ([lines_of(1)[0] | {"method": "GET"}], "invalid_method", 1),
        ([lines_of(1)[0] | {"url": "/v1/completions"}], "mismatched_endpoint", 1),
        ([*lines_of(1), *lines_of(1)], "duplicate_custom_id", 2),
        (lines_of(1, messages=HELLO, stream=True), "invalid_line", 1),
    ],
)
async def test_files_that_are_no_batch(
    client: AsyncOpenAI, engine: FakeEngine, lines: list[Any], code: str, line: int | None
) -> None:
    failed = await over(client, (await begin(client, lines or [""])).id)
    assert failed.status == "failed" and failed.failed_at and not engine.asked
    assert [(error.code, error.line) for error in failed.errors.data] == [(code, line)]


async def test_requests_that_are_refused(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    file = await upload(client, lines_of(1))
    good = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for wrong in ({"endpoint": "/v1/images"}, {"completion_window": "soon"}, {"metadata": {"a": 1}}):
        reply = await http.post("/v1/batches", json=good | wrong)
        assert reply.status_code == 400 and reply.json()["error"]["param"].startswith(next(iter(wrong))), reply.text
    assert (await http.post("/v1/batches", json=good | {"input_file_id": "file-x"})).status_code == 404
    with pytest.raises(NotFoundError, match="There is no batch"):
        await client.batches.retrieve("batch_x")
    with pytest.raises(NotFoundError, match="There is no batch"):
        await client.batches.cancel("batch_x")


async def test_cancelling(client: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await begin(client, lines_of(100))
    await over_some(client, made.id)
    engine.hold = asyncio.Event()
    told = await client.batches.cancel(made.id)
    assert told.status in ("cancelling", "cancelled")
    done = await over(client, made.id)
    assert done.status == "cancelled" and done.cancelled_at and done.cancelling_at
    answers = await results(client, done.output_file_id)
    assert 0 < len(answers) == done.request_counts.completed < 100
    await engine.until_running(0)
    assert (await client.batches.cancel(made.id)).status == "cancelled"


async def over_some(client: AsyncOpenAI, id: str, count: int = 1) -> None:
    async with asyncio.timeout(SECONDS):
        done = 0
        while done < count:
            done = (await client.batches.retrieve(id)).request_counts.completed  # type: ignore[union-attr]


async def test_expiry(client: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    file = await upload(client, lines_of(3))
    made = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="1s")  # type: ignore[arg-type]
    with pytest.raises(Exception, match="is read by a batch"):
        await client.files.delete(file)
    done = await over(client, made.id)
    assert done.status == "expired" and done.request_counts.failed == 3
    errors = await results(client, done.error_file_id)
    assert {error["error"]["code"] for error in errors} == {"batch_expired"} and len(errors) == 3
    await client.files.delete(file)


async def test_lines_wait_while_clients_do(client: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.stats = Stats(1, 1, {}, {}, [])
    made = await begin(client, lines_of(2))
    await asyncio.sleep(0.3)
    assert not engine.asked
    engine.stats = Stats(0, 0, {}, {}, [])
    assert (await over(client, made.id)).status == "completed"


async def test_an_overloaded_server_is_asked_again(client: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.failure = overloaded()
    made = await begin(client, lines_of(2))
    await asyncio.sleep(0.3)
    assert engine.asked and (await client.batches.retrieve(made.id)).request_counts.failed == 0  # type: ignore[union-attr]
    engine.failure = None
    done = await over(client, made.id)
    assert done.status == "completed" and done.request_counts.completed == 2


async def test_a_server_goes_on_where_another_stopped(engine: FakeEngine, text: TextModel, tmp_path: Path) -> None:
    config = from_options({"state_dir": str(tmp_path / "state"), "max_num_seqs": 8})

    async def served() -> AsyncIterator[tuple[Any, AsyncOpenAI]]:
        app = create_app(engine, text, config, MODEL)
        await app.state.front.open()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            yield app, AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)
        await app.state.front.close()

    async for _, client in served():
        made = await begin(client, lines_of(40))
        await over_some(client, made.id, 5)
    await engine.until_running(0)
    num_asked = len(engine.asked)
    assert num_asked < 40
    async for _, client in served():
        done = await over(client, made.id)
        assert done.status == "completed" and done.request_counts.completed == 40
        answers = await results(client, done.output_file_id)
        assert [answer["custom_id"] for answer in answers] == [f"line {n}" for n in range(40)]
        assert len(engine.asked) < num_asked + 40, "what was done is not done again"
