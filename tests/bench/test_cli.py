"""`sapwood bench` and `scripts/gpu_check.py` as commands: what they say, write and return."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import UserError
from sapwood.bench import options, report, spawn
from sapwood.cli import main
from sapwood.cli.bench import _loads

ROOT = Path(__file__).parents[2]
HOST = ["bench", "host", "--sequences", "2", "9", "--steps", "20"]


class Handler(BaseHTTPRequestHandler):
    """Answers every second completion, if `flaky`; the others with 500."""

    protocol_version = "HTTP/1.1"
    flaky = False
    count = 0

    def do_GET(self) -> None:
        self._say(200, b'{"data": [{"id": "small"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).count += 1
        if self.flaky and self.count % 2:
            self._say(500, b'{"error": {"message": "not now"}}')
            return
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        events: list[dict[str, Any]] = [{"choices": [{"text": "x"}]}] * body["max_tokens"]
        events.append({"choices": [], "usage": usage})
        self._say(200, b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events))

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(**fields: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), fields))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_host_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    assert main([*HOST, "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "host"
    assert [line.split("  ")[0] for line in lines[1:]] == ["host (sequences 2)", "host (sequences 9)"]
    saved = report.load(file)
    assert [row.load for row in saved.rows] == [{"sequences": 2}, {"sequences": 9}]
    assert saved.config["steps"] == 20

    assert main([*HOST, "--compare", str(file)]) == 0
    out = capsys.readouterr().out
    assert "compared" in out
    assert "host (sequences 9)  step us p50" in out
    assert main(["bench", "host", "--sequences", "3", "--steps", "5", "--compare", str(file)]) == 2
    assert "same name, model and load" in capsys.readouterr().err


def test_a_server_under_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    with serving() as url:
        argv = ["bench", "serve", "--url", url, "--traffic", "random", "--output-len", "3", "--num-requests", "6"]
        assert main([*argv, "--sweep", "1,2", "--slo", "ttft=60000", "--json", str(file), "--api-key", "secret"]) == 0
    saved = report.load(file)
    assert [(row.name, row.model, row.load) for row in saved.rows] == [
        ("random", "small", {"concurrency": 1.0}),
        ("random", "small", {"concurrency": 2.0}),
    ]
    for row in saved.rows:
        want = {"requests": 6, "failed": 0, "output_tokens": 18, "prompt_tokens": 6 * 128, "slo_share": 1.0}
        assert {name: row.figures[name] for name in want} == want
    assert "secret" not in file.read_text()
    assert "small random (concurrency 2)" in capsys.readouterr().out


def test_failed_requests_are_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(flaky=True) as url:
        argv = ["bench", "serve", "--url", url, "--traffic", "random", "--num-requests", "6", "--warm-up", "0"]
        assert main([*argv, "--concurrency", "1", "--output-len", "2"]) == 1
    found = capsys.readouterr()
    assert "3 requests failed (3 HTTP 500)" in found.err
    assert "HTTP 500: not now" in found.out
    assert "TTFT ms" in found.out


def test_a_workload_that_does_not_fit_is_code_1(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "throughput", str(tiny_model), "--device", "cpu", "--threads", "1", "--scale", "0.0005"]
    assert main([*argv, "--workloads", "w6", "w1", "--max-model-len", "40", "--kv-cache-memory", "8M"]) == 1
    found = capsys.readouterr()
    assert "W6 prefill has sequences of" in found.err
    assert "W1 uniform (scale 0.0005)" in found.out


def test_latency(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    argv = ["bench", "latency", str(tiny_model), "--device", "cpu", "--threads", "1", "--batch", "1", "3"]
    assert main([*argv, "--input-len", "5", "--output-len", "6", "--json", str(file)]) == 0
    saved = report.load(file)
    assert [row.kind for row in saved.rows] == ["start", "latency", "latency"]
    assert saved.rows[2].load == {"batch": 3, "input": 5, "output": 6}
    assert (saved.rows[2].figures["step_ms_p99"] or 0) > 0
    assert saved.config["engine"]["device"] == "cpu"
    assert any(decision.startswith("max_model_len = ") for decision in saved.config["decisions"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["throughput", "--workloads", "w9"], "--workloads"),
        (["throughput", "--json", "/nowhere/a.json"], "--json"),
        (["throughput", "--compare", "/nowhere/a.json"], "--compare"),
        (["host", "--plot", "a.pdf"], "--plot"),
        (["host", "--page-size", "12"], "--page-size"),
        (["serve"], "--url"),
        (["serve", "--url", "a", "--spawn", "b"], "--spawn"),
        (["serve", "--url", "http://a", "--model", "m", "--engine", "depth=1"], "--engine"),
        (["serve", "--url", "http://a", "--rate", "1", "--concurrency", "2"], "--rate"),
        (["serve", "--url", "http://a", "--rate", "0"], "--rate"),
        (["serve", "--url", "http://a", "--sweep", "1,x"], "--sweep"),
        (["serve", "--url", "http://a", "--sweep", "1.5"], "--sweep"),
        (["serve", "--url", "http://a", "--sweep", "1", "--rate", "1"], "--sweep"),
        (["serve", "--url", "http://a", "--loop", "open"], "--loop"),
        (["serve", "--url", "http://a", "--slo", "speed=1"], "--slo"),
        (["serve", "--url", "http://a", "--extra-body", "[]"], "--extra-body"),
        (["serve", "--url", "127.0.0.1:9"], "127.0.0.1:9 cannot be reached"),
        (["serve", "--url", "ftp://a", "--model", "m"], "--url"),
        (["serve", "--spawn", "m", "--engine", "depth"], "--engine"),
        (["serve", "--spawn", "m", "--engine", "deepness=1"], "deepness"),
    ],
)
def test_bad_input_is_code_2_and_names_the_option(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sapwood: error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["throughput", "--scale", "2"], "--scale: takes a number above 0 and up to 1"),
        (["throughput", "--repeat", "0"], "--repeat: takes a whole number above 0"),
        (["latency", "--batch", "x"], "--batch"),
        (["latency", "--max-seconds", "-1"], "--max-seconds"),
        (["serve", "--length-spread", "1"], "--length-spread"),
        (["server"], "WHAT"),
    ],
)
def test_numbers_that_cannot_be(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *argv])
    assert said in capsys.readouterr().err


def parsed(*argv: str) -> Any:
    from sapwood.cli import _parser

    return _parser().parse_args(["bench", "serve", "--url", "http://a", *argv])


def test_loads() -> None:
    (one,) = _loads(parsed())
    assert (one.loop, one.level, one.num_sessions, one.name) == ("closed", 32, 256, "concurrency")
    (rate,) = _loads(parsed("--rate", "2.5", "--burstiness", "0.5", "--seed", "7"))
    assert (rate.loop, rate.level, rate.num_sessions, rate.burstiness, rate.seed) == ("open", 2.5, 64, 0.5, 7)
    (burst,) = _loads(parsed("--rate", "inf"))
    assert burst.num_sessions == 1000
    sweep = _loads(parsed("--sweep", "0.5,20", "--loop", "open", "--num-requests", "9"))
    assert [(load.name, load.level, load.num_sessions) for load in sweep] == [("rate", 0.5, 9), ("rate", 20, 9)]


def test_engine_options_as_a_command_line() -> None:
    given = options.engine_options(["max-num-seqs=8", "prefix_caching=false", "context_length=4K"])
    assert options.engine_flags(given) == ["--max-num-seqs", "8", "--no-enable-prefix-caching", "--max-model-len", "4K"]
    with pytest.raises(UserError, match="--max-num-seqs"):
        options.engine_options(["max_num_seqs=many"])


def test_a_shape_s_tokenizer_knows_every_id(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(spawn.write_tokenizer(tmp_path, 1000)))
    ids = [0, 3, 999]
    assert tokenizer.get_vocab_size() == 1000
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids


def test_a_server_of_our_own(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "serve", "--spawn", str(tiny_model), "--engine", "device=cpu", "kv_cache_memory=32M", "threads=1"]
    argv += ["--traffic", "agent", "--turns", "2", "--prefix-len", "40", "--input-len", "4", "--output-len", "4"]
    assert main([*argv, "--concurrency", "2", "--num-requests", "3", "--vocab-size", "200"]) == 0
    assert "agent (concurrency 2)" in capfd.readouterr().out


def test_a_server_that_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--spawn", str(tmp_path)]) == 2
    assert "before it was ready" in capfd.readouterr().err


def test_gpu_check_measures_what_it_can(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), "--no-tests", "--device", "cpu", "--scale", "0.0002"]
    command += ["--shapes", str(tiny_model), "nowhere", "--workloads", "w3", "w6", "--engine", "threads=1"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    rows = report.load(file).rows
    assert [(row.model, row.name, row.error is None) for row in rows] == [
        (tiny_model.name, "start", True),
        (tiny_model.name, "W3 shared prefix", True),
        (tiny_model.name, "W6 prefill", True),
        ("nowhere", "all", False),
    ]
    assert "nowhere all: FAILED: did not start" in done.stdout
    assert subprocess.run([*command, "--engine", "x=1"], capture_output=True, check=False).returncode == 2
