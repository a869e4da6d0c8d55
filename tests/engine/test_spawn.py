"""A child that was begun is never left behind, at whatever moment an interrupt comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from sapwood.engine import interrupts
from sapwood.engine.spawn import spawn

SLEEPS = (sys.executable, "-c", "import sys; sys.stdin.read()")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that is begun."""
    found: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return found


def test_interrupted_before_anybody_holds_the_child(
    begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        spawn(SLEEPS)
    assert begun[0].returncode is not None  # ended, and waited for
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_before_there_is_a_child(
    begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "held", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spawn(SLEEPS)
    assert not begun


def test_a_child_that_is_forgotten_has_ended(begun: list[subprocess.Popen[bytes]]) -> None:
    spawn(SLEEPS)  # an exception between this and a `with` has the same end
    assert begun[0].returncode is not None


def test_interrupted_while_it_ends(begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    child = spawn(SLEEPS)
    monkeypatch.setattr(begun[0], "kill", lambda: (os.kill(os.getpid(), signal.SIGINT), begun[0].terminate()))
    with pytest.raises(KeyboardInterrupt), child:
        pass
    assert begun[0].returncode is not None


def test_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGINT)
    with spawn(SLEEPS) as child:
        assert signal.getsignal(signal.SIGINT) is before
        child.close()
        assert child.wait() == 0
