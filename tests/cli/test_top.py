"""`sapwood top`, against a small server that says what a running one would."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from sapwood.base.errors import SapwoodError
from sapwood.cli import main
from sapwood.cli.frames import curve, duration, frame, segments
from sapwood.cli.looks import Looks, figures, look
from sapwood.cli.remote import Remote
from tests.waiting import SECONDS


def told(at: float, *, output: int = 0, firsts: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """What a server says `at` seconds after its start, when so many tokens have been generated."""
    latency = {
        "first_token": {"bounds": [0.1, 0.2, None], "counts": firsts or [0, 0, 0]},
        "inter_token": {"bounds": [0.01, None], "counts": [output, output]},
    }
    counters = {"output_tokens": output, "prompt_tokens": 3 * output, "cached_tokens": output, "steps": output // 2}
    state = {
        "time": 1000.0 + at,
        "uptime": at,
        "model": "small",
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 8,
        "running": 2,
        "waiting": 1,
        "counters": counters | {"evicted_pages": 5, "preemptions": 1, "errors": 0},
        "seconds": {"host_seconds": at / 10, "wait_seconds": at / 2},
        "pages": [[100, 40, 20]],
        "latency": latency,
        "lanes": [lane(7, "output"), lane(8, "prompt"), lane(9, "waiting", cached=-1, computed=0)],
    }
    return state | more


def lane(id: int, phase: str, *, cached: int = 16, computed: int = 48) -> dict[str, Any]:
    told = {"id": id, "phase": phase, "prompt": 40, "output": 8, "computed": computed, "cached": cached}
    return told | {"limit": 80, "priority": 0, "age": 1.5}


class Server(ThreadingHTTPServer):
    """Each look is another second of its life. Wants a key if it has one."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.looks = key, 0
        self.body: Any = None  # instead of what a server would say

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.looks += 1
        good = server.key is None or self.headers.get("authorization") == f"Bearer {server.key}"
        body = server.body or told(server.looks, output=100 * server.looks, firsts=[server.looks, 2 * server.looks] * 2)
        if self.path == "/live?tree=0" and good:
            self._send(200, body)
        else:
            self._send(401 if not good else 404, {"error": {"message": "Missing or wrong API key"}})

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(key: str | None = None) -> Iterator[Server]:
    with Server(key) as server:
        server.body = None
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shown(looks: Looks, **options: Any) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(frame(looks, most_lanes=options.get("most_lanes", 10), url="http://there"))
    return console.export_text()


def test_what_follows_from_two_looks() -> None:
    found = figures(told(10, output=100, firsts=[0, 0, 0]), told(20, output=300, firsts=[4, 8, 10]))
    assert (found.output, found.computed, found.cached, found.steps) == (20, 60, 20, 10)
    assert (found.hit_rate, found.host, found.busy) == (0.25, pytest.approx(0.1), pytest.approx(0.5))
    assert found.first_token == {50: pytest.approx(0.125), 95: 0.2}  # the slowest are beyond the last bound
    assert found.inter_token[50] == pytest.approx(0.005)


def test_where_nothing_happened_nothing_is_made_up() -> None:
    found = figures(told(1), told(2))
    assert found.hit_rate is None and found.first_token == {50: None, 95: None} and found.output == 0


def test_an_engine_that_began_anew_counts_from_there() -> None:
    assert figures(told(1, output=500), told(2, output=40)).output == 40


def test_a_look_that_tells_nothing_new_is_left_out() -> None:
    looks = Looks(told(1))
    looks.add(told(2, output=50, firsts=[1, 1, 1]))
    looks.add(told(2, output=50, firsts=[1, 1, 1]))
    looks.add(told(3, output=80, firsts=[1, 1, 1]))
    assert list(looks.curves["output"]) == [50, 30]
    assert list(looks.curves["first_token"]) == [pytest.approx(0.05)] * 2  # as it was last


def test_a_frame() -> None:
    looks = Looks(told(1))
    looks.add(told(2, output=50, firsts=[1, 1, 1]))
    text = shown(looks)
    assert "small" in text and "2 of 8 running, 1 waiting" in text and "50.0 tok/s" in text
    assert "40 used, 20 cached, 40 free of 100 pages" in text and "25% of prompt tokens were cached" in text
    assert [line.split()[:2] for line in text.splitlines() if line[:1] in {"7", "8", "9"}] == [
        ["7", "output"],
        ["8", "prompt"],
        ["9", "waiting"],
    ]
    assert "... and 2 more" in shown(looks, most_lanes=1)
    idle = Looks(told(1, lanes=[], running=0))
    assert "no requests" in shown(idle)


def test_an_empty_server_and_a_huge_request_are_drawn() -> None:
    odd = told(1, pages=[[0, 0, 0], [5, 5, 0]], lanes=[lane(1, "aside", cached=-1, computed=0) | {"limit": 0}])
    assert "0 used, 0 cached, 5 free of 5 pages" in shown(Looks(odd))


def test_bars_and_curves() -> None:
    bar = segments([("used", 1), ("cached", 1), ("free", 2)], width=8).plain
    assert bar == "██▒▒····"
    assert len(segments([("used", 1), ("free", 2)], width=10).plain) == 10
    assert curve([0, 1, 2, 4]).plain.rstrip() == " ▂▄█" and curve([]).plain.strip() == ""
    assert [duration(value) for value in (1.25, 42, 125, 7260, 90000)] == [
        "1.2 s",
        "42 s",
        "2 m 5 s",
        "2 h 1 m",
        "1 d 1 h",
    ]


def test_once(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert main(["top", server.url, "--once", "--interval", "0.05"]) == 0
    assert "100.0 tok/s" in capsys.readouterr().out


def test_json_with_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("sesam") as server:
        url = server.url
        assert main(["top", url, "--once", "--json", "--interval", "0.05", "--api-key", "sesam"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["model"] == "small" and found["output_tokens_per_second"] == 100
        assert found["pages"] == [{"total": 100, "free": 40, "evictable": 20}] and len(found["lanes"]) == 3
        assert main(["top", url, "--once", "--api-key", "other"]) == 2
    assert "answered 401" in capsys.readouterr().err
    assert main(["top", url, "--once"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("body", [[1], {"status": "ok"}, "hello"])
def test_who_is_no_sapwood_is_told_so(body: Any) -> None:
    with serving() as server:
        server.body = body
        with pytest.raises(SapwoodError, match="not as `sapwood serve` does"):
            look(Remote(server.url))


def test_a_pipe_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert main(["top", server.url]) == 2
    assert "--once" in capsys.readouterr().err


def test_in_a_terminal_q_quits() -> None:
    with serving() as server:
        outer, inner = pty.openpty()
        command = [sys.executable, "-m", "sapwood", "top", server.url, "--interval", "0.05"]
        with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner) as process:
            os.close(inner)
            seen = b""
            while b"q quits" not in seen or server.looks < 4:
                seen += os.read(outer, 1 << 16)
            os.write(outer, b"q")
            with contextlib.suppress(OSError):
                while True:
                    os.read(outer, 1 << 16)
            assert process.wait(SECONDS) == 0
        os.close(outer)
