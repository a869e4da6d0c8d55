"""A batch outlives its server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai

from tests.http.conftest import Server, alive
from tests.waiting import SECONDS, eventually

COUNT = 40


def test_a_kill_in_the_middle(tiny_model: Path, tmp_path: Path) -> None:
    """All lines are answered once, as they would have been without it."""
    flags = (
        "--kv-cache-memory",
        "32M",
        "--served-model-name",
        "tiny",
        "--max-num-seqs",
        "4",
        "--state-dir",
        str(tmp_path),
    )
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "ignore_eos": True, "temperature": 0}
    lines = [
        {"custom_id": f"line {n}", "method": "POST", "url": "/v1/chat/completions", "body": body | {"seed": n}}
        for n in range(COUNT)
    ]
    server = Server(tiny_model, *flags)
    try:
        with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, timeout=SECONDS) as client:
            content = "\n".join(map(json.dumps, lines)).encode()
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            made = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            eventually(lambda: done_of(client.batches.retrieve(made.id)) >= 3)
            before = done_of(client.batches.retrieve(made.id))
        engine = server.engine_pid
    finally:
        server.kill()
    assert before < COUNT
    eventually(lambda: not alive(engine))
    server = Server(tiny_model, *flags)
    try:
        with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, timeout=SECONDS) as client:
            assert done_of(client.batches.retrieve(made.id)) >= before, "what was done is not lost"
            eventually(lambda: client.batches.retrieve(made.id).status == "completed")
            done: Any = client.batches.retrieve(made.id)
            assert done.request_counts.to_dict() == {"total": COUNT, "completed": COUNT, "failed": 0}
            told = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
        assert [one["custom_id"] for one in told] == [f"line {n}" for n in range(COUNT)]
        assert len({one["response"]["body"]["choices"][0]["message"]["content"] for one in told}) == 1
    finally:
        assert server.stop() == 0, server.output


def test_a_state_directory_that_is_none(tiny_model: Path, tmp_path: Path) -> None:
    """It is told before the model is loaded."""
    (tmp_path / "file").write_text("")
    command = [
        sys.executable,
        "-m",
        "sapwood",
        "serve",
        str(tiny_model),
        "--port",
        "0",
        "--state-dir",
        str(tmp_path / "file"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert ended.returncode == 2 and "--state-dir" in ended.stderr and "File exists" in ended.stderr


def done_of(batch: Any) -> int:
    done: int = batch.request_counts.completed
    return done
