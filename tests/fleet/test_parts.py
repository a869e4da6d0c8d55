"""Servers as processes, and a router that hears from a register: what a fleet is made of, without a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sapwood.fleet.engines import EngineReplica
from sapwood.fleet.hosted import Hosted, NotServing, load_of
from sapwood.fleet.ingress import IngressReplica
from sapwood.fleet.plan import Engine, checked
from sapwood.fleet.register import Register
from sapwood.fleet.scaling import Load
from tests.http.conftest import alive
from tests.waiting import eventually, within

SERVER = Path(__file__).parent / "pretend.py"
KEY = "secret"


def run(main: Any) -> None:
    asyncio.run(within(main))


def hosted(*words: str) -> Hosted:
    command = [sys.executable, str(SERVER), *words]
    return Hosted(command, {**os.environ, "SAPWOOD_API_KEY": KEY}, host="127.0.0.1", key=KEY, drain=5)


def test_a_server_from_its_start_to_its_end() -> None:
    async def main() -> None:
        server = hosted()
        url = await server.ready(60)
        async with aiohttp.ClientSession() as session:
            assert await server.load(session) == Load(3.0, 2.0, 7 * 16.0)
            (pid,) = [int(line.partition(" ")[2]) for line in server.lines() if line.startswith("pid ")]
            assert server.lines() == [] and alive(pid)
            await server.stop()
            with pytest.raises(NotServing):
                await server.load(session)
        assert not alive(pid) and url.startswith("http://127.0.0.1:")

    run(main())


def test_a_server_that_does_not_start_says_why() -> None:
    async def main() -> None:
        with pytest.raises(NotServing, match="no such model"):
            await hosted("fail").ready(60)
        slow = hosted("hang")
        with pytest.raises(NotServing, match="not ready after"):
            await slow.ready(0.01)
        await slow.stop()

    run(main())


def test_a_server_ends_with_whoever_began_it() -> None:
    """However that goes: here it is killed."""
    code = (
        "import os, sys; from sapwood.fleet.hosted import Hosted\n"
        f"server = Hosted([sys.executable, {str(SERVER)!r}], os.environ, host='h', key='k', drain=5)\n"
        "server._found.wait()\nprint(server.lines()[0], flush=True)\nimport time; time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline().partition(" ")[2])
    assert alive(pid)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    eventually(lambda: not alive(pid))


def test_load_of_several_groups() -> None:
    said = (
        'sapwood_running 3.0\nsapwood_waiting 1.0\nsapwood_page_size 16.0\nsapwood_pages{group="0",state="used"} 4.0\n'
        'sapwood_pages{group="1",state="used"} 9.0\nsapwood_pages{group="1",state="total"} 90.0\n'
    )
    assert load_of(said) == Load(3.0, 1.0, 144.0)


class Handle:
    """What a handle of Ray is to those who call it: `handle.method.remote(...)`."""

    def __init__(self, what: Any) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._what, name)

        class Method:
            @staticmethod
            async def remote(*given: Any) -> Any:
                found = called(*given)
                return await found if asyncio.iscoroutine(found) else found

        return Method()


class Pretended(Engine, frozen=True, kw_only=True):
    def command(self, name: str, host: str) -> list[str]:
        return [sys.executable, str(SERVER)]


async def replica(register: Register, name: str) -> EngineReplica:
    made = EngineReplica("m", Pretended(model="m"), KEY, Handle(register), name, "127.0.0.1")
    await made.begin()
    return made


async def until(true: Any) -> None:
    """Until it is, whatever is called for that."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def unwell(one: EngineReplica) -> None:
    """Raises NotServing as soon as it is no longer well."""
    while True:
        await one.check_health()
        await asyncio.sleep(0.02)


def test_a_replica_tells_of_itself_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.fleet.engines._BEAT_SECONDS", 0.05)
    monkeypatch.setattr("sapwood.fleet.engines._HEARD_SECONDS", 0.0)

    async def main() -> None:
        register = Register()
        one = await replica(register, "one")
        await until(lambda: register.urls("m"))
        await one.check_health()
        register.wants("router", "http://r", {"m": 4})
        stats = await one.record_autoscaling_stats()
        while stats != {"running": 3.0, "waiting": 2.0, "tokens": 112.0, "queued": 4.0}:
            await asyncio.sleep(0.02)
            stats = await one.record_autoscaling_stats()
        said = [piece async for piece in one.ask("/v1/chat/completions", b'{"model": "m"}', {})]
        assert json.loads(b"".join(said))["by"].isdigit()
        with pytest.raises(NotServing, match="404"):
            [piece async for piece in one.ask("/nowhere", b"{}", {})]
        await one.stop()
        assert register.urls("m") == [] and register.state()["servers"][0]["state"] == "gone"

    run(main())


def test_nobody_hears_of_a_replica_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """While its answers end it tells nothing of itself."""
    monkeypatch.setattr("sapwood.fleet.engines._BEAT_SECONDS", 0.01)
    monkeypatch.setattr("sapwood.fleet.engines._HEARD_SECONDS", 0.2)

    class Noting(Register):
        left, late = False, 0

        def tell(self, *given: Any) -> dict[str, Any]:
            self.late += self.left
            return super().tell(*given)

        def leave(self, *given: Any) -> None:
            self.left = True
            super().leave(*given)

    async def main() -> None:
        register = Noting()
        one = await replica(register, "one")
        await until(lambda: register.urls("m"))
        await one.stop()
        assert register.left and not register.late and register.urls("m") == []

    run(main())


def test_calls_by_handle_take_as_long_as_they_go_on() -> None:
    async def main() -> None:
        one = await replica(Register(), "one")
        assert one._session.timeout.total is None
        await one.stop()

    run(main())


def test_a_replica_whose_server_has_ended_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.fleet.engines._BEAT_SECONDS", 0.02)

    async def main() -> None:
        register = Register()
        one = await replica(register, "one")
        await until(lambda: register.urls("m"))
        (pid,) = [int(line.partition(" ")[2]) for line in register.logs("one", 100)["one"] if line.startswith("pid ")]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: register.urls("m") == [])  # before anybody has looked whether it is well
        with pytest.raises(NotServing):
            await unwell(one)
        await one.stop()

    run(main())


def test_requests_wait_for_a_server_that_is_begun_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without a server: it asks for one, and the request that waited is answered by it. One of a model that nobody has is refused."""
    monkeypatch.setattr("sapwood.fleet.engines._BEAT_SECONDS", 0.05)
    monkeypatch.setattr("sapwood.fleet.engines._HEARD_SECONDS", 0.0)
    monkeypatch.setattr("sapwood.fleet.ingress._EVERY", 0.05)
    monkeypatch.setattr("sapwood.fleet.register.YOUNG_SECONDS", 0.2)

    async def main() -> None:
        register, woken = Register(), []

        class Sleeping:
            async def wake(self) -> None:
                if not woken:
                    woken.append(0)
                    woken[0] = await replica(register, "one")

        plan = checked(
            {"engine": {"m": {"model": "m", "device": "cpu", "min_replicas": 0}}, "ingress": {"port": 0}}, "here"
        )
        router = IngressReplica(plan, KEY, Handle(register), {"m": Handle(Sleeping())}, "router", "127.0.0.1")
        await router.begin()
        url = await router.where()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/v1/models") as answer:
                assert [one["id"] for one in (await answer.json())["data"]] == ["m"]
            async with session.post(f"{url}/v1/chat/completions", json={"model": "n"}) as answer:
                assert answer.status == 404 and not woken
            async with session.post(f"{url}/v1/chat/completions", json={"model": "m"}) as answer:
                assert answer.status == 200 and answer.headers["x-sapwood-server"].startswith("m/127.0.0.1:")
            assert len(woken) == 1 and register.state()["routers"] == [url]
            await until(lambda: register.queued("m") == 0)
            await router.check_health()
            register.drain("one")
            task = asyncio.create_task(session.post(f"{url}/v1/chat/completions", json={"model": "m"}))
            await until(lambda: task.done() or register.queued("m") == 1)
        await router.stop()
        await woken[0].stop()

    run(main())
