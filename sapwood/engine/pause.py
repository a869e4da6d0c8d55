"""Standing still: requests stay where they are while nothing is computed, and go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import sleep
from typing import Any

from sapwood.base.request import Request
from sapwood.base.stake import LATER, NOW, Ready, Stake


class Pause(Stake):
    """Holds back who comes, or everybody.

    Attributes:
        held: Requests that came while it was closed and may not start.
    """

    def __init__(self) -> None:
        self.held: set[Request] = set()
        self._closed = False

    @property
    def commands(self) -> Mapping[str, Callable[[], dict[str, Any]]]:
        """`hold` lets those who are here go on to their ends, and no more start; `pause` stands still; `continue` ends both."""
        return {"hold": self._hold, "pause": self._pause, "continue": self._continue}

    def status(self) -> dict[str, Any]:
        return {"held": len(self.held)}

    def concerns(self, request: Request) -> bool:
        if self._closed:
            self.held.add(request)
        return self._closed

    def ready(self, request: Request) -> Ready:
        if self._closed:
            return LATER
        self.held.discard(request)
        return NOW

    def wait(self, seconds: float) -> None:
        sleep(seconds)

    def forget(self, request: Request) -> None:
        self.held.discard(request)

    def reset(self) -> None:
        self.held.clear()

    def _hold(self) -> dict[str, Any]:
        self._closed = True
        return self.status()

    def _pause(self) -> dict[str, Any]:
        self.halts = True
        return self.status()

    def _continue(self) -> dict[str, Any]:
        self.halts = self._closed = False
        return self.status()
