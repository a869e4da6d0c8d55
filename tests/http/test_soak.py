"""The soak, for as long as a test may take: scripts/soak.py --seconds 3600 by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.waiting import SECONDS

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


def test_mixed_traffic_and_faults() -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "15", "--fault-every", "4", "--clients", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
