"""What `make demo` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


def test_the_demo(smollm2: Path) -> None:
    command = [sys.executable, str(DEMO), "--model", str(smollm2), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The capital of Italy is Rome." in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if " ms " in line]
    cached_tokens = [int(row[row.index("ms") - 2]) for row in rows]
    assert cached_tokens[0] == 0
    assert min(cached_tokens[1:]) > 900
    assert "times sooner" in done.stdout
