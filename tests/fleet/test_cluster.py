"""A fleet on a real cluster of Ray, of this machine alone: about two minutes and 2 GB. `pip install 'sapwood[ray]'`, `pytest -m slow tests/fleet`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from tests.tiny import write_bytes_model

pytestmark = pytest.mark.slow

SECONDS = 240.0  # that anything is waited for at most
TABLE = """
[ingress]
port = 0
cpus = 0

[engine.tiny]
model = "{model}"
replicas = 2
cpus = 0
device = "cpu"
options = {{load-format = "dummy", max-model-len = 2048, threads = 1, kv-cache-memory = "32M"}}
drain_seconds = 20

[engine.rare]
model = "{model}"
min_replicas = 0
max_replicas = 2
target_requests = 2
up_seconds = 0
down_seconds = 3
zero_seconds = 3
cpus = 0
device = "cpu"
options = {{load-format = "dummy", max-model-len = 2048, threads = 1, kv-cache-memory = "32M", max-num-seqs = 4}}
drain_seconds = 20
"""
BY_HANDLE = """
import json, ray
from ray import serve
ray.init(address="auto", log_to_driver=False)
handle = serve.get_deployment_handle("tiny", app_name="sapwood.tiny").options(stream=True)
body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}).encode()
said = [b"".join(handle.ask.remote("/v1/chat/completions", body, {})) for _ in range(4)]
print("said", [json.loads(one)["usage"]["completion_tokens"] for one in said])
"""


def eventually(true: Callable[[], Any]) -> Any:
    until = monotonic() + SECONDS
    while not (found := true()):
        assert monotonic() < until, "it has not come about"
        sleep(0.5)
    return found


class Cluster:
    """`sapwood fleet up`, and what the other commands say of it."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.folder = tempfile.mkdtemp(prefix="fl", dir="/tmp")  # paths of sockets are short
        self.env = {**os.environ, "RAY_TMPDIR": self.folder, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.env.pop("RAY_ADDRESS", None)
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sapwood", "fleet", "up", str(table)],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        prefix = "sapwood fleet: "

        def url() -> str:
            assert self.process.poll() is None, "".join(self.output)
            return next((line.removeprefix(prefix).strip() for line in self.output if line.startswith(prefix)), "")

        self.url = eventually(url)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.output.extend(iter(self.process.stdout.readline, ""))

    def says(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, *(("-c", BY_HANDLE) if not words else ("-m", "sapwood", "fleet", *words))]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def servers(self, model: str) -> dict[str, dict[str, Any]]:
        told = json.loads(self.says("status", "--json").splitlines()[-1])["register"]["servers"]
        return {one["name"]: one for one in told if one["model"] == model and one["state"] == "ready"}

    def chat(self, model: str, text: str, max_tokens: int = 4) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body | {"ignore_eos": True}, timeout=SECONDS)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray.serve", reason="Ray is not installed")
    folder = tmp_path_factory.mktemp("fleet")
    write_bytes_model(folder)
    (folder / "fleet.toml").write_text(TABLE.format(model=folder))
    found = Cluster(folder / "fleet.toml")
    yield found
    assert found.stop() == 0, "".join(found.output)
    assert pids("sapwood", "serve", str(folder)) == []


def pids(*words: str) -> list[int]:
    """Processes in whose command all of these are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in command for word in words) and "fleet up" not in command:
            found.append(int(path.parent.name))
    return found


def test_servers_that_stay(cluster: Cluster) -> None:
    """Two of them share the work; one that is killed is replaced, and nobody notices who asks again; one that is drained ends its answers."""
    answered: set[str] = set()

    def asked() -> bool:
        answer = cluster.chat("tiny", f"a question behind {len(answered)} others")
        assert answer.status_code == 200
        answered.add(answer.headers["x-sapwood-server"])
        return len(answered) == 2

    eventually(asked)

    before = cluster.servers("tiny")
    assert len(before) == 2
    (actor, *_) = pids("ray::ServeReplica:sapwood.tiny:tiny")
    os.kill(actor, signal.SIGKILL)
    assert [cluster.chat("tiny", f"{number} again").status_code for number in range(6)] == [200] * 6
    eventually(lambda: len(now := cluster.servers("tiny")) == 2 and set(now) != set(before))

    drained = next(iter(cluster.servers("tiny")))
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(cluster.chat, "tiny", f"long {number}", 600) for number in range(4)]
        assert f"{drained} gets nothing new" in cluster.says("drain", drained)
        assert [one.result().json()["usage"]["completion_tokens"] for one in running] == [600] * 4
    eventually(lambda: drained not in (now := cluster.servers("tiny")) and len(now) == 2)
    assert "ready at" in cluster.says("logs", "tiny")
    assert "nobody" in cluster.says("drain", "nobody", code=2)


def test_calls_by_handle(cluster: Cluster) -> None:
    assert "said [4, 4, 4, 4]" in cluster.says()


def test_as_many_as_are_needed(cluster: Cluster) -> None:
    """None while nobody asks, one for who does, two for many, and none again."""
    assert cluster.servers("rare") == {}
    assert "rare" in [one["id"] for one in httpx.get(f"{cluster.url}/v1/models").json()["data"]]
    assert cluster.chat("rare", "is anybody there?").status_code == 200  # it has waited for one
    stop = threading.Event()

    def asks(number: int) -> int:
        count = 0
        while not stop.is_set():
            assert cluster.chat("rare", f"{number} {count}", 200).status_code == 200
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(asks, number) for number in range(8)]
        try:
            eventually(lambda: len(cluster.servers("rare")) == 2)
        finally:
            stop.set()
        assert all(one.result() for one in asking)
    eventually(lambda: cluster.servers("rare") == {})
    assert cluster.chat("rare", "and now?").status_code == 200


def test_another_table_changes_what_it_changes(cluster: Cluster) -> None:
    """Servers of which nothing has changed stay where they are, those of a model that is new come, and those of one that is gone go."""
    before = cluster.servers("tiny")
    assert len(before) == 2
    other = cluster.table.with_name("other.toml")
    other.write_text(cluster.table.read_text().replace("[engine.rare]", "[engine.new]"))
    said = cluster.says("up", str(other))
    cluster.url = next(line for line in said.splitlines() if line.startswith("sapwood fleet: ")).split()[-1]
    assert set(cluster.servers("tiny")) == set(before)
    eventually(lambda: cluster.chat("new", "who is there?").status_code == 200)
    assert cluster.chat("tiny", "and there?").status_code == 200
    assert cluster.chat("rare", "and there?").status_code == 404
