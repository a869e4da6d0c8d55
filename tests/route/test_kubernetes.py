"""Servers that a cluster's API names, which is played here."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sapwood.base.errors import ConfigError
from sapwood.config import env
from sapwood.route.fleet import Fleet
from sapwood.route.kubernetes import Kubernetes
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server, checked
from sapwood.route.watch import Watch
from tests.route.mock import Mock
from tests.route.test_proxy import run
from tests.server.test_door import Papers


def slices(*endpoints: dict[str, Any], ports: Any = ((8000, "http"),), kind: str = "IPv4") -> dict[str, Any]:
    return {
        "metadata": {"name": "engines-x2v"},
        "addressType": kind,
        "endpoints": list(endpoints),
        "ports": [{"port": port, "name": name, "protocol": "TCP"} for port, name in ports],
    }


def at(*addresses: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": list(addresses), "conditions": conditions, "nodeName": "n"}


class Cluster:
    """An API: what it says, and what it was asked."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.asked: list[web.Request] = []
        self.token = "t1"

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if request.headers["authorization"] != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "message": "endpointslices is forbidden"}, status=403)
        return web.json_response({"kind": "EndpointSliceList", "items": self.items})


@contextlib.asynccontextmanager
async def cluster(papers: Papers, account: Path) -> AsyncIterator[tuple[Cluster, Kubernetes, aiohttp.ClientSession]]:
    played, app = Cluster(), web.Application()
    app.add_routes([web.get("/{path:.*}", played.answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*papers.sign("api"))
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    (account / "token").write_text("t1\n")
    (account / "namespace").write_text("here")
    shutil.copy(papers.ca, account / "ca.crt")
    where = env.kubernetes(
        {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(runner.addresses[0][1])}
    )
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield played, Kubernetes(session, where, account), session
    await runner.cleanup()


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl, which is not there")
    return Papers(tmp_path_factory.mktemp("papers"))


def test_ready_endpoints_are_found(papers: Papers, tmp_path: Path) -> None:
    async def case() -> None:
        async with cluster(papers, tmp_path) as (played, find, _):
            played.items = [
                slices(at("10.0.0.2", ready=True), at("10.0.0.1"), at("10.0.0.3", ready=False, serving=True)),
                slices(at("10.0.0.1", ready=True), at("10.0.0.4", "10.0.0.5", ready=True)),
                slices(at("fd00::1", ready=True), kind="IPv6"),
                slices(at("elsewhere.org"), kind="FQDN", ports=((443, ""),)),
            ]
            found = await find(Server(url="k8s+http://engines.models:8000"))
            assert found.urls == [f"http://{one}:8000" for one in ("10.0.0.1", "10.0.0.2", "10.0.0.4", "[fd00::1]")]
            assert found.host == "engines.models:8000"
            (request,) = played.asked
            assert request.raw_path == (
                "/apis/discovery.k8s.io/v1/namespaces/models/endpointslices"
                "?labelSelector=kubernetes.io%2Fservice-name%3Dengines"
            )
            assert (await find(Server(url="k8s+https://engines"))).urls[0] == "https://10.0.0.1:8000"
            assert played.asked[-1].path.endswith("/namespaces/here/endpointslices")
            await find(Server(url="k8s+http://engines.models.svc.cluster.local"))
            assert played.asked[-1].path.endswith("/namespaces/models/endpointslices")
            played.items = [slices(ports=()) | {"endpoints": None, "ports": None}]  # nobody is there
            assert (await find(Server(url="k8s+http://engines:8000"))).urls == []

    run(case())


def test_what_is_wrong_is_told(papers: Papers, tmp_path: Path) -> None:
    async def case() -> None:
        async with cluster(papers, tmp_path) as (played, find, session):
            played.items = [slices(at("10.0.0.1"), ports=((8000, "http"), (9000, "metrics")))]
            for url in ("k8s+http://engines", "k8s+http://engines:80"):
                with pytest.raises(
                    OSError, match=r"port of its containers; there are: 8000 \(http\), 9000 \(metrics\)"
                ):
                    await find(Server(url=url))
            played.token = "t2"
            with pytest.raises(OSError, match="says 403: endpointslices is forbidden"):
                await find(Server(url="k8s+http://engines:8000"))
            (tmp_path / "token").write_text("t2")  # which the cluster does by itself
            assert len((await find(Server(url="k8s+http://engines:8000"))).urls) == 1
            other = tmp_path / "other"
            other.mkdir()
            (tmp_path / "ca.crt").write_text(Path(Papers(other).ca).read_text())
            with pytest.raises(OSError, match="does not say"):
                await find(Server(url="k8s+http://engines:8000"))
            with pytest.raises(ConfigError, match="is for a pod of Kubernetes"):
                await Kubernetes(session, env.kubernetes({}))(Server(url="k8s+http://engines"))

    run(case())


def test_a_fleet_follows_a_service(papers: Papers, tmp_path: Path) -> None:
    async def case() -> None:
        mock = Mock("a")
        await mock.start()
        port = int(mock.url.rpartition(":")[2])
        table = checked({"server": [{"url": f"k8s+http://engines.models:{port}", "name": "pool"}]}, "")
        fleet = Fleet(table)
        async with cluster(papers, tmp_path) as (played, find, session):
            played.items = [slices(at("127.0.0.1", ready=True), ports=((port, ""),))]
            watch = Watch(fleet, Prefixes(), session, None, finders={"k8s": find}, changed=lambda: None)
            await watch.first_look()
            (replica,) = fleet.replicas.values()
            assert replica.name == f"pool/127.0.0.1:{port}" and replica.models == {"m"} and replica.alive
            played.token = "other"
            await watch.first_look()
            assert list(fleet.replicas.values()) == [replica]  # what cannot be asked now changes nothing
            played.token, played.items = "t1", []
            await watch.first_look()
            assert not fleet.replicas
        await mock.stop()
        await asyncio.sleep(0)

    run(case())


def test_the_environment_says_where_the_api_is() -> None:
    assert env.kubernetes({}) is None
    assert env.kubernetes({"KUBERNETES_SERVICE_HOST": "fd00::1"}) == "https://[fd00::1]:443"
    assert env.kubernetes({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "6443"}) == "https://h:6443"
