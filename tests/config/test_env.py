"""The environment is read in one place, and only there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sapwood
from sapwood.config import env


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"SAPWOOD_CACHE": "/a"}, Path("/a")),
        ({"SAPWOOD_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/sapwood")),
        ({}, Path.home() / ".cache/sapwood"),
    ],
)
def test_cache_dir(variables: dict[str, str], path: Path) -> None:
    assert env.cache_dir(variables) == path


def test_kernel_dir() -> None:
    assert env.kernel_dir({"SAPWOOD_CACHE": "/a"}) == Path("/a/kernels")
    assert env.kernel_dir({"SAPWOOD_CACHE": "/a", "TRITON_CACHE_DIR": "/b"}) == Path("/b")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("True", True), ("0", False), ("", False)])
def test_switches(text: str, value: bool) -> None:
    assert env.debug({"SAPWOOD_DEBUG": text}) is env.offline({"HF_HUB_OFFLINE": text}) is value


def test_a_child_gets_no_keys() -> None:
    assert env.of_a_child({"PATH": "/bin", "SAPWOOD_API_KEY": "k", "HF_TOKEN": "t"}) == {"PATH": "/bin"}


def test_nobody_else_reads_the_environment() -> None:
    root = Path(sapwood.__file__).parent
    readers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"os\.environ\b|os\.getenv|getenv\(", path.read_text("utf-8"))
    }
    readers.discard("kernels/cpu/build.py")  # which is run before there is a package to read it for it
    assert readers == {"config/env.py"}
