"""A real server with the small real model, in a process of its own and from the other environment."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = (
    Path(__file__).parents[1] / ".venv/bin/sapwood", "serve", "--device", "cpu", "--port", "0", "--max-model-len", "4096",
    "--max-num-seqs", "4", "--threads", "1", "--served-model-name", "smol",
)  # fmt: skip


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where the server is, without a path."""
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"ready at (http://\S+)", line):
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(said))
        yield found[1]
        process.terminate()
        process.communicate()


@pytest.fixture(scope="session")
def routed(url: str) -> Iterator[str]:
    """A router before it, without a path."""
    command = (COMMAND[0], "route", url, "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("sapwood route: "), said
        yield said.removeprefix("sapwood route: ").strip()
        process.terminate()
        process.communicate()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
