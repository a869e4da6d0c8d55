"""Where a server listens: certificates, clients' certificates, and paths."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import bind
from tests.server.test_serve import serving
from tests.waiting import SECONDS, eventually

pytestmark = pytest.mark.anyio


class Papers:
    """An authority and what it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl(
            *"req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=authority".split(),
            *self._out("ca"),
        )
        self.ca = str(folder / "ca.pem")

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.folder)

    @staticmethod
    def _out(name: str) -> list[str]:
        return ["-keyout", f"{name}.key", "-out", f"{name}.pem"]

    def sign(self, name: str, *protection: str) -> tuple[str, str]:
        """A certificate of 127.0.0.1 and its key."""
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        how = protection or ("-nodes",)
        self._openssl(
            *"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj".split(),
            f"/CN={name}",
            *how,
            "-keyout",
            f"{name}.key",
            "-out",
            "asked",
        )
        self._openssl(
            *"x509 -req -in asked -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out".split(),
            f"{name}.pem",
        )
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl, which is not there")
    return Papers(tmp_path_factory.mktemp("papers"))


def secured(papers: Papers, name: str = "server", *protection: str, **more: str) -> Config:
    cert, key = papers.sign(name, *protection)
    return Config(server=ServerConfig(port=0, ssl_certfile=cert, ssl_keyfile=key, **more))  # type: ignore[arg-type]


def trusting(papers: Papers, *own: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=papers.ca)
    if own:
        context.load_cert_chain(*own)
    return context


async def test_https(app: Starlette, papers: Papers) -> None:
    """Streams included, with a key that has a password."""
    config = secured(papers, "locked", "-passout", "pass:sesame", ssl_keyfile_password="sesame")
    async with serving(app, config) as (url, _), httpx.AsyncClient(timeout=SECONDS, verify=trusting(papers)) as http:
        assert url.startswith("https://")
        reply = await http.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 4, "stream": True})
        assert reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n")


async def test_clients_need_a_certificate_where_that_is_asked(app: Starlette, papers: Papers) -> None:
    config = secured(papers, ssl_ca_certs=papers.ca)
    async with serving(app, config) as (url, _):
        async with httpx.AsyncClient(timeout=SECONDS, verify=trusting(papers, *papers.sign("client"))) as http:
            assert (await http.get(f"{url}/health")).status_code == 200
        async with httpx.AsyncClient(timeout=SECONDS, verify=trusting(papers)) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"{url}/health")


async def test_a_certificate_is_read_again(app: Starlette, papers: Papers) -> None:
    """One that cannot be used changes nothing."""
    config = secured(papers, "renewed")

    def serial(port: int) -> str:
        raw = socket.create_connection(("127.0.0.1", port))
        with trusting(papers).wrap_socket(raw, server_hostname="127.0.0.1") as spoken:
            return str((spoken.getpeercert() or {})["serialNumber"])

    async with serving(app, config) as (url, _):
        port = int(url.rpartition(":")[2])
        first = await asyncio.to_thread(serial, port)
        good = Path(config.server.ssl_certfile or "").read_bytes()
        Path(config.server.ssl_certfile or "").write_bytes(b"broken")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        assert await asyncio.to_thread(serial, port) == first
        Path(config.server.ssl_certfile or "").write_bytes(good)
        papers.sign("renewed")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.to_thread(eventually, lambda: serial(port) != first)


def test_certificates_that_cannot_be_used(papers: Papers) -> None:
    server = secured(papers).server
    other, _ = papers.sign("other")
    for wrong, names in (
        (replace(server, ssl_certfile=None), "--ssl-keyfile needs --ssl-certfile"),
        (replace(server, ssl_certfile=None, ssl_keyfile=None, ssl_ca_certs=papers.ca), "--ssl-ca-certs needs"),
        (replace(server, ssl_certfile=other), "its own key"),
        (replace(server, ssl_keyfile=None), "not given"),
        (replace(server, ssl_certfile="no/such.pem"), "no/such.pem"),
        (replace(server, ssl_ca_certs="no/such.pem"), "--ssl-ca-certs no/such.pem"),
        (secured(papers, "locked2", "-passout", "pass:sesame").server, "--ssl-keyfile-password"),
    ):
        with pytest.raises(ConfigError, match=names):
            bind(Config(server=wrong))


async def test_a_path(app: Starlette, tmp_path: Path) -> None:
    """A socket that a killed server has left there is in nobody's way; it is gone when the server is."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    config = Config(server=ServerConfig(uds=str(path)))
    async with serving(app, config) as (url, _):
        assert url == f"unix:{path}"
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=SECONDS) as http:
            assert (await http.get("http://localhost/health")).json()["status"] == "ok"
        with pytest.raises(ConfigError, match="another server listens"):
            bind(config)
    assert not path.exists()


def test_paths_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "no" / "such", tmp_path / ("x" * 200)):
        with pytest.raises(ConfigError, match="--uds"):
            bind(Config(server=ServerConfig(uds=str(path))))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_vanished_client_is_found_out() -> None:
    """As far as TCP tells: connections inherit what makes it look."""
    with bind(Config(server=ServerConfig(port=0))) as door:
        door.sock.listen()
        with socket.create_connection(door.sock.getsockname()):
            door.sock.setblocking(True)
            accepted, _ = door.sock.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
