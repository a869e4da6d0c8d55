"""An engine in this process, seen as one in a process of its own is seen."""

from __future__ import annotations

import sys

from sapwood.base.wire import Abort, Control, Deltas, Facts, FromEngine, Reply, Submit, ToEngine
from sapwood.engine.client import AsyncEngine
from sapwood.engine.loop import DeviceLost, Engine


class InProcess(AsyncEngine):
    """Drives `engine` and speaks to it without a message queue in between; there is no bound on waiting requests.

    Nothing moves by itself: whoever waits for news calls `step`, and followers are woken in it.
    """

    def __init__(self, engine: Engine, facts: Facts) -> None:
        super().__init__(self._handle, facts, max_live=sys.maxsize)
        self._engine = engine
        self._said: list[FromEngine] = []  # before the step that hands it on

    def step(self) -> None:
        """One turn of the engine. When it cannot go on, everything that is waiting for it ends with EngineDead."""
        said, self._said = self._said, []
        try:
            said += self._engine.step()
        except DeviceLost as error:
            self.die(str(error))
        self.receive(said)

    def drain(self) -> None:
        """Step until nothing runs: steps may be in flight when everybody has left."""
        while self.dead is None and not self._engine.idle:
            self.step()

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                refused = self._engine.submit(message)
                if refused is not None:
                    self._said.append(Deltas([], [], [refused]))
            case Abort():
                self._engine.abort(message)
            case Control(id, what, about):
                self.receive([Reply(id, self._engine.control(what, about))])
