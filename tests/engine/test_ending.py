"""However a front ends, its engine's process has ended before it, and nothing is left in the folder of their sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.engine import fake_process
from tests.tiny import write_bytes_model
from tests.waiting import SECONDS, eventually

ROOT = Path(__file__).parents[2]
BEGIN = """
import sys
from sapwood.engine import keeper, spawn
spawn.COMMAND = ({python!r}, {script!r}, {way!r}, {folder!r})
keeper.EXIT_SECONDS = {exit_seconds}
"""
SERVE = """
from sapwood.cli import main, serve
serve.DEAD_SECONDS = 0.1
sys.exit(main(["serve", "--model", {model!r}, "--load-format", "dummy", "--device", "cpu", "--port", "{port}",
    "--max-engine-restarts", "{restarts}"]))
"""
CALLER = """
import asyncio
from sapwood.engine.client import AsyncEngine
from sapwood.llm import AsyncLLM

def broken(*_):
    raise RuntimeError("on purpose")

async def main():
    made = AsyncLLM({model!r}, load_format="dummy", device="cpu")
    {body}

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a front reads of a model."""
    folder = tmp_path_factory.mktemp("front")
    write_bytes_model(folder)
    return folder


class Front:
    """A process that has a fake engine."""

    def __init__(self, folder: Path, way: str, code: str, *, exit_seconds: float, prefix: Sequence[str] = ()) -> None:
        script = fake_process.__file__
        begin = BEGIN.format(
            python=sys.executable, script=script, way=way, folder=str(folder), exit_seconds=exit_seconds
        )
        (folder / "tmp").mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", begin + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)},
        )

    def reach(self, moment: str) -> None:
        """Wait until its engine has `begun`, was `told` what to be, or the front is `ready`."""
        if moment == "ready":
            assert self.process.stdout is not None
            assert any(line.startswith("ready") for line in self.process.stdout)
        else:
            eventually(lambda: (self.folder / moment).exists() or self.process.poll() is not None)

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it still said, once it has ended; its engine has then, too."""
        try:
            said, _ = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        if (self.folder / "begun").exists():  # else it was ended before it came to that
            with pytest.raises(ProcessLookupError):
                os.kill(int((self.folder / "begun").read_text()), 0)
        return self.process.returncode, said

    @property
    def left(self) -> list[Path]:
        return [*(self.folder / "tmp").glob("sapwood-*")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a short name: sockets bear no long ones."""
    with tempfile.TemporaryDirectory(prefix="ending-") as name:
        yield Path(name)


def serve(
    folder: Path,
    way: str,
    model: Path,
    *,
    exit_seconds: float = SECONDS,
    port: int = 0,
    restarts: int = 0,
    **how: list[str],
) -> Front:
    code = SERVE.format(model=str(model), port=port, restarts=restarts)
    return Front(folder, way, code, exit_seconds=exit_seconds, **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(("moment", "way"), [("begun", "loads"), ("told", "stays"), ("ready", "serves")])
def test_told_to_end(folder: Path, model: Path, moment: str, way: str, number: signal.Signals) -> None:
    front = serve(folder, way, model, exit_seconds=0.5 if way == "stays" else SECONDS)
    front.reach(moment)
    front.process.send_signal(number)
    code, said = front.ended()
    assert code == (0 if moment == "ready" else 128 + number), said
    assert not front.left and "Traceback" not in said


@pytest.mark.parametrize(
    ("moment", "way", "number"),
    [
        ("begun", "stays", signal.SIGINT),
        ("told", "stays", signal.SIGINT),
        ("told", "stays", signal.SIGTERM),
        ("ready", "lingers", signal.SIGINT),
    ],
)
def test_told_again_and_again(folder: Path, model: Path, moment: str, way: str, number: signal.Signals) -> None:
    """An engine that does not go is killed then, without the time that it was given."""
    front = serve(folder, way, model)
    front.reach(moment)
    for _ in range(20):
        front.process.send_signal(number)
        time.sleep(0.02)  # so that they are not one signal
    eventually(lambda: front.process.poll() is not None or front.process.send_signal(number))
    front.ended()
    assert not front.left


@pytest.mark.parametrize(("way", "says"), [("breaks", "exit code 7"), ("dies", "exit code 7")])
def test_the_engine_ends_by_itself(folder: Path, model: Path, way: str, says: str) -> None:
    front = serve(folder, way, model)
    code, said = front.ended()
    assert code == 1 and says in said
    assert not front.left


def test_who_comes_before_the_engine_is_ready_is_told(folder: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    front = serve(folder, "loads", model, port=port)
    front.reach("told")

    def told() -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
                return client.makefile("rb").read()
        except ConnectionRefusedError:
            return b""

    answer = eventually(told)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after" in answer and answer.endswith(b'is being loaded"}')
    front.process.send_signal(signal.SIGTERM)
    code, said = front.ended()
    assert code == 128 + signal.SIGTERM and "Traceback" not in said, said


@pytest.mark.parametrize("second", ["loads", "stays"])
def test_told_to_end_while_another_engine_starts(folder: Path, model: Path, second: str) -> None:
    front = serve(folder, f"serves,{second}", model, exit_seconds=0.5, restarts=1)
    front.reach("ready")
    first = (folder / "begun").read_text()
    os.kill(int(first), signal.SIGKILL)
    eventually(lambda: (folder / "begun").read_text() != first)
    front.process.send_signal(signal.SIGTERM)
    code, said = front.ended()
    assert code == 0 and "Traceback" not in said, said
    assert not front.left


def test_a_port_that_is_taken(folder: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        front = serve(folder, "loads", model, port=taken.getsockname()[1])
        code, said = front.ended()
    assert code == 2 and "in use" in said and "Traceback" not in said


@pytest.mark.parametrize("way", ["serves", "loads", "breaks"])
def test_a_tokenizer_that_cannot_be_read(folder: Path, tmp_path: Path, way: str) -> None:
    """It is told at once, be the engine ready or not; where the engine breaks too, one of the two is told."""
    write_bytes_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    front = serve(folder, way, tmp_path)
    code, said = front.ended()
    told = (code == 2 and "tokenizer" in said) or (way == "breaks" and code == 1 and "exit code 7" in said)
    assert told and "Traceback" not in said and "never retrieved" not in said, said
    assert not front.left


def test_a_front_without_standard_input(folder: Path, model: Path) -> None:
    front = serve(folder, "serves", model, prefix=["bash", "-c", 'exec "$0" "$@" <&-'])
    front.reach("ready")
    front.process.send_signal(signal.SIGTERM)
    code, said = front.ended()
    assert code == 0, said
    assert not front.left


BODIES = {
    "left": "async with made: pass",
    "raised": "async with made: raise RuntimeError('on purpose')",
    "raised after the engine's start": "AsyncEngine.end_at = broken; await made.__aenter__()",
    "never left": "await made.__aenter__()",
}


@pytest.mark.parametrize("body", BODIES)
def test_in_a_callers_process(folder: Path, model: Path, body: str) -> None:
    front = Front(folder, "serves", CALLER.format(model=str(model), body=BODIES[body]), exit_seconds=SECONDS)
    code, said = front.ended()
    assert code == (1 if "raised" in body else 0), said
    assert ("on purpose" in said) == ("raised" in body)
    assert not front.left


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("way", ["loads", "lingers"])
def test_ctrl_c_in_a_callers_process(folder: Path, model: Path, way: str, times: int) -> None:
    body = "async with made: print('ready', flush=True); await asyncio.Event().wait()"
    seconds = 0.5 if way == "lingers" and times == 1 else SECONDS
    front = Front(folder, way, CALLER.format(model=str(model), body=body), exit_seconds=seconds)
    front.reach("ready" if way == "lingers" else "told")
    front.process.send_signal(signal.SIGINT)
    if times == 2:
        eventually(lambda: front.process.poll() is not None or front.process.send_signal(signal.SIGINT))
    code, _ = front.ended()
    assert code != 0
    assert not front.left
