"""How servers start, stop and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from sapwood.stores.folder import contents
from tests.http.conftest import Server, alive
from tests.waiting import SECONDS, eventually


def generate(server: Server, result: dict[str, Any], *, max_tokens: int) -> threading.Thread:
    """A streamed completion in the background; `result` gets its lines, or what broke it."""

    def run() -> None:
        body = {"model": "tiny", "prompt": "Hello", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        result["lines"] = lines = []
        try:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=SECONDS) as answer:
                lines.extend(answer.iter_lines())
        except httpx.HTTPError as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    server.wait_until_running(1)
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_an_engine_that_dies_or_hangs_is_followed_by_another(tiny_model: Path, number: signal.Signals) -> None:
    """The request in flight hears why, health too, and the next one is answered."""
    flags = ["--served-model-name", "tiny", "--kv-cache-memory", "32M", "--watchdog-timeout", "1"]
    server = Server(tiny_model, *flags)
    try:
        result: dict[str, Any] = {}
        thread = generate(server, result, max_tokens=4000)
        os.kill(server.engine_pid, number)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the request hangs"
        assert any("started again" in line for line in result["lines"])
        answer, late = server.health(), server.post("/v1/completions", json={"model": "tiny", "prompt": "Hi"})
        assert answer.status_code == 503 and answer.json()["status"] == "restarting"
        assert ("SIGKILL" if number == signal.SIGKILL else "hangs") in answer.json()["reason"]
        assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
        eventually(lambda: server.get("/ready").status_code == 200)
        assert server.health().json()["restarts"] == 1
        assert server.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2}).status_code == 200
    finally:
        server.kill()


def test_an_engine_that_may_not_be_followed_ends_its_server(tiny_model: Path) -> None:
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--max-engine-restarts", "0")
    os.kill(server.engine_pid, signal.SIGKILL)
    eventually(lambda: server.health().status_code == 503)
    answer = server.health()
    assert answer.json()["status"] == "dead" and "SIGKILL" in answer.text
    assert server.process.wait(SECONDS) == 1
    server.kill()


def test_sigterm_drains(own_server: Server) -> None:
    result: dict[str, Any] = {}
    thread = generate(own_server, result, max_tokens=800)
    own_server.process.send_signal(signal.SIGTERM)
    thread.join(SECONDS)
    assert not thread.is_alive(), "the request hangs"
    assert "error" not in result and result["lines"][-2:] != []
    assert any(line == "data: [DONE]" for line in result["lines"])
    assert any('"finish_reason":"length"' in line for line in result["lines"])
    assert own_server.process.wait(SECONDS) == 0


def test_an_engine_does_not_outlive_its_front(own_server: Server) -> None:
    engine = own_server.engine_pid
    own_server.process.kill()
    own_server.process.wait()
    eventually(lambda: not alive(engine))


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sapwood", "serve", "--device", "cpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def test_a_port_in_use(tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = serve("--model", str(tiny_model), "--port", str(port))
    assert ended.returncode == 2 and str(port) in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", b"\x00" * 100, "model.safetensors"),
        ("config.json", b'{"architectures": ["NoSuchForCausalLM"]}', "NoSuchForCausalLM"),
        ("config.json", b"{", "config.json"),
    ],
)
def test_a_model_that_cannot_be_used(tiny_model: Path, tmp_path: Path, file: str, content: bytes, says: str) -> None:
    for source in tiny_model.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / file).write_bytes(content)
    ended = serve("--model", str(tmp_path), "--port", "0")
    assert ended.returncode == 2 and says in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


def test_too_little_memory(tiny_model: Path) -> None:
    ended = serve("--model", str(tiny_model), "--port", "0", "--kv-cache-memory", "1K")
    assert ended.returncode == 2 and "memory" in ended.stderr and "Traceback" not in ended.stderr


def test_stopping_while_the_engine_loads_is_quick(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "sapwood", "serve", "--model", str(tiny_model), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
    engine = int(children.read_text().split()[0])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert not alive(engine)


def test_an_engine_that_was_killed_leaves_its_prefixes_on_disk(tiny_model: Path, tmp_path: Path) -> None:
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--kv-store", f"file:{tmp_path}?size=64M")
    body = {"prompt": "A prompt that takes some pages. " * 4, "max_tokens": 8, "temperature": 0}
    try:
        first = server.post("/v1/completions", json=body).json()
        eventually(lambda: sum(one.num_pages for one in contents(tmp_path)) >= 8)
        os.kill(server.engine_pid, signal.SIGKILL)
        eventually(lambda: server.health().status_code == 503)
        eventually(lambda: server.get("/ready").status_code == 200)
        second = server.post("/v1/completions", json=body).json()
    finally:
        server.kill()
    assert second["choices"] == first["choices"]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    assert cached == [0, 112]
