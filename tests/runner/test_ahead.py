"""Kernels compiled ahead, for a device that is not there: what Triton looks for when they are launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("ahead_script.py")


def start(root: Path, cache: Path) -> dict[str, object]:
    """What a start finds, of the package at `root`, in a process that compiles instead of interpreting."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    variables |= {"SAPWOOD_CACHE": str(cache), "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=variables, cwd=root, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_other_versions_find_what_was_compiled(tmp_path: Path) -> None:
    import sapwood

    here = Path(sapwood.__file__).parent
    cache = tmp_path / "cache"
    first = start(here.parent, cache)
    assert first == {"rehearsed": 1, "blank": True, "launches": [["_gate", True]], "root": str(here)}
    compiled = set(cache.rglob("*.cubin"))
    assert len(compiled) == 1
    assert start(here.parent, cache) == first | {"rehearsed": 0}, "a second start has nothing to rehearse"

    # Another version, elsewhere, in which the kernel has moved within its file.
    later = tmp_path / "later"
    for path in here.rglob("*.py"):
        target = later / "sapwood" / path.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        moved = "# One line more.\n" if path.name in ("fused.py", "pdl.py") else ""
        target.write_text(moved + path.read_text("utf-8"), "utf-8")
    assert start(later, cache) == first | {"root": str(later / "sapwood")}
    assert set(cache.rglob("*.cubin")) == compiled, "nothing was compiled again"


def test_a_process_that_cannot_compile_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sapwood.runner.compiler", "2"],
        input=b'{"module":"sapwood.kernels.triton.fused","name":"nobody","specialization":"","target":["cuda",90,32]}\n',
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0
