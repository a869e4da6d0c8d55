"""A child that was begun is never left behind by an interrupt, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from sapwood.engine.spawn import spawn

SLEEPS = (sys.executable, "-c", "import sys; sys.stdin.read()")


def test_interrupted_before_anybody_holds_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            begun.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        spawn(SLEEPS)
    assert begun[0].returncode is not None  # ended, and waited for
    assert signal.getsignal(signal.SIGINT) is before


def test_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGINT)
    with spawn(SLEEPS) as child:
        assert signal.getsignal(signal.SIGINT) is before
        child.close()
        assert child.wait() == 0
