"""What a router must not get wrong: keys, bodies, headers, what is counted, who is asked."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sapwood.base.errors import ConfigError
from sapwood.route.ask import Ask
from sapwood.route.discovery import Found, by_dns
from sapwood.route.fleet import Fleet, Replica, State
from sapwood.route.meter import Meter
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server, checked
from sapwood.route.upstream import said_to, sni
from sapwood.route.usage import Unasked
from sapwood.route.watch import Watch
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import CHAT, body, run


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION", "authorization"])
def test_keys_count_however_their_header_is_written(name: str) -> None:
    async def case() -> None:
        async with routed(Mock("a"), api_key="k") as (client, _):
            for path in (CHAT, "/v1/models"):
                method = client.post if path == CHAT else client.get
                given = {"json": body()} if path == CHAT else {}
                async with method(path, headers={name: "Bearer k"}, **given) as answer:
                    assert answer.status == 200
                async with method(path, headers={name: "Bearer other"}, **given) as answer:
                    assert answer.status == 401

    run(case())


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_are_sent_on_as_they_are_read(encoding: str, pack: Any) -> None:
    async def case() -> None:
        a = Mock("a")
        async with routed(a) as (client, _):
            headers = {"content-encoding": encoding, "content-type": "application/json"}
            async with client.post(CHAT, data=pack(json.dumps(body()).encode()), headers=headers) as answer:
                assert answer.status == 200
            assert a.bodies == [body()] and "content-encoding" not in a.headers[0]
            headers["content-encoding"] = "compress"
            async with client.post(CHAT, data=b"whatever", headers=headers) as answer:
                error = (await answer.json())["error"]
                assert answer.status == 415 and error["param"] == "content-encoding" and "gzip" in error["message"]

    run(case())


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_limits_of_tokens_bind_for_whoever_asks_for_compression_or_streams(tmp_path: Path, options: Any) -> None:
    async def case() -> None:
        keys, a = tmp_path / "keys.toml", Mock("a")
        keys.write_text('[[keys]]\nname = "t"\nkey = "k"\ntokens_per_minute = 40\n')
        async with routed(a, api_keys_file=str(keys)) as (client, router):
            said = []
            for stream in (False, True, False):
                headers = {"x-api-key": "k", "accept-encoding": "gzip"}
                asked = body(stream=stream) | ({"stream_options": options} if stream and options else {})
                async with client.post(CHAT, json=asked, headers=headers) as answer:
                    said.append((answer.status, await answer.read()))
            assert [status for status, _ in said] == [200, 200, 429]  # 12 and 30 of 40
            assert {one["accept-encoding"] for one in a.headers} == {"identity"}
            assert a.bodies[1]["stream_options"] == {"include_usage": True}
            assert (b"usage" in said[1][1]) == (options == {"include_usage": True})  # nobody else sees it
            assert said[1][1].endswith(b"data: [DONE]\n\n") and said[1][1].count(b'"by"') == 3
            assert "sapwood_route_tokens_total 42.0" in router.metrics.text().decode()

    run(case())


def test_streams_of_who_has_no_limit_are_asked_for_nothing_more() -> None:
    async def case() -> None:
        a = Mock("a")
        async with routed(a) as (client, _), client.post(CHAT, json=body(stream=True)) as answer:
            await answer.read()
            assert a.bodies == [body(stream=True)]

    run(case())


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_pays_for_the_prompt_and_what_has_come(tmp_path: Path, stream: bool) -> None:
    async def case() -> None:
        keys, a = tmp_path / "keys.toml", Mock("a")
        keys.write_text('[[keys]]\nname = "t"\nkey = "k"\ntokens_per_minute = 100\n')
        a.go_on.clear()
        a.way = "answers" if stream else "waits"
        async with routed(a, api_keys_file=str(keys)) as (client, router):
            asked = client.post(CHAT, json=body(stream=stream), headers={"x-api-key": "k"})
            task = asyncio.ensure_future(asked)
            await until(lambda: bool(a.bodies))
            if stream:
                answer = await task
                await answer.content.readuntil(b"\n\n")
                answer.close()
            else:
                task.cancel()
            await until(lambda: router.fleet.replicas["a"].running == 0)
            async with client.post(CHAT, json=body(), headers={"x-api-key": "k"}) as answer:
                assert answer.status == 429

    run(case())


def of(kind: str, *pieces: bytes, whole: bool = True, encoding: str = "", asked: dict[str, Any] | None = None) -> int:
    meter = Meter(Ask("/v1/messages", json.dumps(asked or {"prompt": "word" * 10}).encode(), {}))
    meter.sent()
    meter.begins(200, encoding, streams=kind == "stream")
    for piece in pieces:
        meter.sees(piece)
    if whole:
        meter.ends()
    return meter.tokens


def test_tokens_are_counted_as_each_dialect_tells_them() -> None:
    start = b'event: message_start\ndata: {"usage": {"input_tokens": 25, "output_tokens": 1}}\n\n'
    end = b'event: message_delta\ndata: {"usage": {"output_tokens": 15}}\n\n'
    filling = [b'data: {"delta": {"text": "' + b"x" * 1000 + b'"}}\n\n'] * 40
    assert of("stream", start, *filling, end) == of("stream", start, end) == 40
    assert of("whole", b'{"usage": {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 2}}') == 12
    assert of("stream", b'{"done": true, "prompt_eval_count": 5, "eval_count": 6}\n') == 11
    assert of("whole", b'{"meta_info": {"prompt_tokens": 5, "completion_tokens": 6}}') == 11
    assert of("whole", b'{"text": "\\"total_tokens\\": 9"}') == 0  # what a model says counts for nothing
    packed = gzip.compress(b'{"usage": {"total_tokens": 77}}')
    assert of("whole", packed[:9], packed[9:], encoding="gzip") == 77
    assert of("whole", b"x" * 400, encoding="br") == 100 + 10
    assert of("stream", *filling) == 40 + 10  # its pieces, and the prompt's tokens
    assert of("stream", start, *filling, whole=False) == 51
    picture = {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + "A" * 100_000}}]}]}
    assert of("stream", b"data: 1\n\n", asked=picture) < 50


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_usage_that_nobody_asked_for_is_taken_out_wherever_it_is_cut(end: bytes) -> None:
    first, azure = (
        b'data: {"choices":[{"delta":{"content":"\\"choices\\":[]"}}]}\n\n',
        b'data: {"choices":[],"f":1}\n\n',
    )
    usage, done = b'data: {"choices": [ ], "usage": {"total_tokens": 3}}\n\n', b"data: [DONE]\n\n"
    azure, first, usage, done = (event.replace(b"\n", end) for event in (azure, first, usage, done))
    whole = azure + first + usage + done + b"rest"
    for size in range(1, len(whole) + 1):
        hidden = Unasked()
        said = b"".join(hidden.passes(whole[at : at + size]) for at in range(0, len(whole), size)) + hidden.rest()
        assert said == azure + first + done + b"rest", size
    hidden = Unasked()
    assert hidden.passes(first + usage) == first and hidden.passes(done[:5]) == b"" and hidden.passes(done[5:]) == done
    assert len(hidden.passes(b"x" * (2 << 20))) == 2 << 20  # what is no event at all is not waited for
    assert of("stream", first, first, done) == 3 + 10


@pytest.mark.parametrize("status", [401, 404, 429])
def test_a_server_that_will_not_say_which_models_it_has_keeps_those_that_are_known(status: int) -> None:
    async def case() -> None:
        a = Mock("a")
        async with routed(a) as (client, router):
            a.said_of_models = status
            await router.read_again()
            await router._watch.first_look()
            assert router.fleet.replicas["a"].models == {"m"}
            async with client.post(CHAT, json=body()) as answer:
                assert answer.status == 200

    run(case())


def form(model: str | None) -> aiohttp.FormData:
    made = aiohttp.FormData()
    made.add_field("file", b"RIFF\r\n--no\r\n" * 1000, filename="a.wav", content_type="audio/wav")
    if model is not None:
        made.add_field("model", model)
    made.add_field("language", "m")
    return made


def test_forms_are_routed_by_their_model_and_by_names_that_stand_for_it() -> None:
    async def case() -> None:
        a, b = Mock("a", ("other",)), Mock("b", ("m",))
        async with routed(a, b, table={"model": {"ears": {"to": ["m"]}}}) as (client, _):
            for name in ("m", "ears"):
                async with client.post("/v1/audio/transcriptions", data=form(name)) as answer:
                    assert answer.headers["x-sapwood-server"] == "b"
            first, second = (raw.partition(b"\r\n")[2] for raw in b.raw)
            boundary = b.raw[1].partition(b"\r\n")[0]
            assert b'name="model"\r\n\r\nm\r\n' in b.raw[1] and b"ears" not in b.raw[1]
            assert second.replace(boundary, b.raw[0].partition(b"\r\n")[0]) == first
            async with client.post("/v1/audio/transcriptions", data=form("none")) as answer:
                assert answer.status == 404 and "there are: ears, m, other" in (await answer.json())["error"]["message"]
            async with client.post("/v1/audio/transcriptions", data=form(None)) as answer:
                assert answer.status == 200  # the server says what it thinks of it

    run(case())


@pytest.mark.parametrize("model", ["m", None])
def test_one_that_is_busy_is_asked_when_all_others_have_failed(model: str | None) -> None:
    async def case() -> None:
        a, b = Mock("a"), Mock("b")
        async with routed(a, b, table={"policy": "round_robin"}) as (client, router):
            router.fleet.replicas["a"].said_busy(20)
            asked = {"prompt": "x"} | ({"model": model} if model else {})
            for _ in range(3):
                async with client.post(CHAT, json=asked) as answer:
                    assert answer.headers["x-sapwood-server"] == "b"
            b.way = "silent"
            async with client.post(CHAT, json=asked) as answer:
                assert answer.status == 200 and answer.headers["x-sapwood-server"] == "a"

    run(case())


def test_headers_that_come_twice_pass_twice_and_refusals_pass_whole() -> None:
    async def case() -> None:
        a = Mock("a")
        async with routed(a) as (client, _):
            async with client.post(CHAT, json=body()) as answer:
                assert answer.headers.getall("set-cookie") == ["a=1", "b=2"]
            a.way = "busy"
            async with client.post(CHAT, json=body()) as answer:
                assert (await answer.json()) == {"error": {"message": "full"}}
                assert answer.headers["x-sapwood-server"] == "a"

    run(case())


def test_cookies_of_one_client_are_not_another_ones() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        url = a.url.replace("127.0.0.1", "localhost")  # cookies of addresses would be dropped anyway
        async with routed(a, table={"server": [{"url": url, "name": "a"}]}) as (client, _):
            for headers in ({}, {"cookie": "mine=3"}, {}):
                async with client.post(CHAT, json=body(), headers=headers) as answer:
                    assert answer.headers.getall("set-cookie") == ["a=1", "b=2"]
            assert [one.get("cookie") for one in a.headers] == [None, "mine=3", None]

    run(case())


def test_latest_is_the_name_without_it_and_the_other_way_round() -> None:
    async def case() -> None:
        ours, ollama = Mock("ours", ("m",)), Mock("ollama", ("n:latest", "n:7b"))
        async with routed(ours, ollama, table={"model": {"fast": {"to": ["m"]}}}) as (client, _):
            for name, there in (("m:latest", "m"), ("n", "n:latest"), ("n:7b", "n:7b"), ("fast:latest", "m")):
                async with client.post("/api/chat", json=body(name)) as answer:
                    assert answer.status == 200 and (await answer.json())["model"] == there

    run(case())


def test_latest_is_the_name_of_a_model_whose_servers_are_begun_when_they_are_wanted() -> None:
    fleet = Fleet(checked({"server": [{"url": "dns+http://m", "models": ["m"]}]}, ""), begun=lambda server: True)
    assert fleet.names("m:latest") == ("m",) and fleet.coming("m") and fleet.names("n:latest") == ("n:latest",)


def test_a_user_and_a_password_in_an_address_are_for_the_server_alone() -> None:
    async def case() -> None:
        a = Mock("a")
        await a.start()
        table = {"server": [{"url": a.url.replace("http://", "http://us%20er:p%40ss@")}]}
        async with routed(a, table=table) as (client, _):
            async with client.post(CHAT, json=body(), headers={"authorization": "Bearer mine"}) as answer:
                assert answer.status == 200 and answer.headers["x-sapwood-server"] == a.url.partition("://")[2]
            sent = a.headers[-1]
            assert aiohttp.BasicAuth.decode(sent["authorization"]) == aiohttp.BasicAuth("us er", "p@ss")
            assert sent["host"] == a.url.partition("://")[2]
            for path in ("/route", "/metrics"):
                async with client.get(path) as answer:
                    assert "ss@" not in await answer.text()
        with pytest.raises(ConfigError, match="either a key or a user"):
            checked({"server": [{"url": "http://u:p@h", "key": "k"}]}, "")

    run(case())


def test_one_that_is_looked_up_goes_by_its_name() -> None:
    server = Server(url="dns+https://engines.models:8443", key="k", models=("m",))
    fleet = Fleet(checked({"server": [{"url": "http://a"}]}, ""))
    fleet.table = checked({"server": [{"url": server.url, "models": ["m"]}]}, "")
    fleet.set_addresses(fleet.table.server[0], ["https://10.0.0.1:8443"], "engines.models:8443")
    (replica,) = fleet.replicas.values()
    assert sni(replica) == "engines.models" and said_to(replica) == {"host": "engines.models:8443"}
    assert sni(Replica(server, "http://a", "a")) is None


def test_an_answer_of_a_name_server_that_comes_after_the_table_has_changed_adds_nobody() -> None:
    async def case() -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def slow(server: Server) -> Found:
            asked.set()
            await go_on.wait()
            return Found(["http://10.0.0.1:1"], "old")

        fleet = Fleet(checked({"server": [{"url": "dns+http://old"}]}, ""))
        async with aiohttp.ClientSession() as session:
            watch = Watch(fleet, Prefixes(), session, None, finders={"dns": slow}, changed=lambda: None)
            look = asyncio.ensure_future(watch.first_look())
            await asked.wait()
            fleet.set_table(checked({"server": [{"url": "http://127.0.0.1:9", "models": ["m"]}]}, ""))
            go_on.set()
            await look
        assert list(fleet.replicas) == ["127.0.0.1:9"]

    run(case())


def test_a_name_that_is_given_another_address_keeps_nothing_of_the_old() -> None:
    def table(url: str) -> Any:
        return checked({"server": [{"url": url, "name": "a", "models": ["m"]}]}, "")

    fleet = Fleet(table("http://1"))
    fleet.set_table(fleet.table)
    fleet.replicas["a"].failed()
    assert fleet.set_table(table("http://2")) == ["a"] and fleet.replicas["a"].state is State.READY
    for url, gone in (("dns+http://x", ["a"]), ("dns+http://y", ["a/10.0.0.1:80"])):
        assert fleet.set_table(table(url)) == gone
        fleet.set_addresses(fleet.table.server[0], ["http://10.0.0.1:80"], url)
        assert list(fleet.replicas) == ["a/10.0.0.1:80"]


def test_what_a_body_costs_grows_with_its_length_only() -> None:
    """Else one request would keep a router busy for hours."""
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for odd in (b"\r\n--b" * 500_000 + b"\r\n", b"--b\r\n" + b"content-disposition: ;" * 100_000):
        assert Ask("/v1/audio/transcriptions", odd, kind).model is None
    words = json.dumps({"prompt": ("a" * 511 + " ") * 40_000}).encode()
    assert Ask("/v1/completions", words, {}).prompt_tokens == 5_120_000


@pytest.mark.parametrize(
    "odd",
    [
        b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "\\ud800"}',
    ],
)
def test_bodies_that_nobody_can_read_are_refused_as_such(odd: bytes) -> None:
    async def case() -> None:
        async with routed(Mock("a")) as (client, _):
            async with client.post(CHAT, data=odd, headers={"content-type": "application/json"}) as answer:
                assert answer.status == 400 and (await answer.json())["error"]["code"] == "invalid_json"
            for path in (CHAT, "/v1/context/compact"):
                packed = {"content-type": "application/json", "content-encoding": "gzip"}
                async with client.post(path, data=b"no gzip", headers=packed) as answer:
                    error = (await answer.json())["error"]
                    assert answer.status == 400 and "cannot be read" in error["message"]
            history = b'{"budget": 100, "messages": [{"role": "user", "content": "\xff"}]}'
            async with client.post("/v1/context/compact", data=history) as answer:
                assert answer.status == 400

    run(case())


def test_fields_that_nobody_can_read_say_nothing() -> None:
    ask = Ask(CHAT, b'{"model": "\xff", "user": "\xff", "max_tokens": 1e999, "metadata": {"user_id": "\xff"}}', {})
    assert (ask.model, ask.session, ask.weight) == (None, None, 256)


def test_a_name_that_can_be_none_is_a_fault_of_the_table() -> None:
    with pytest.raises(ConfigError, match="no name that can be looked up"):
        run(by_dns(Server(url=f"dns+http://{'a' * 70}:80")))
