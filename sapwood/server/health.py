"""Whether this server is well and takes requests, for whoever asks in whatever dialect."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sapwood.server.errors import retry_header
from sapwood.server.front import Front


class Health(NamedTuple):
    """How a server is; before there is one, `starting` says so.

    Attributes:
        status: `restarting`: the engine has died and another is on its way; `hung`: it does not answer; `dead`: it is gone,
            and the server ends.
        reason: Why it is not well.
        retry_after: Seconds until it should be well, where that is known.
    """

    status: Literal["ok", "draining", "restarting", "hung", "dead"]
    reason: str | None = None
    retry_after: float | None = None

    @property
    def alive(self) -> bool:
        """Steps end in time: what was begun will be finished. One that drains is alive."""
        return self.status in ("ok", "draining")

    @property
    def ready(self) -> bool:
        """Requests are taken."""
        return self.status == "ok"

    @property
    def headers(self) -> dict[str, str]:
        """Of an answer that says so."""
        return {} if self.retry_after is None else retry_header(self.retry_after)


async def health_of(front: Front) -> Health:
    """How it is now. An engine that is idle is asked, so this takes a few seconds where it does not answer."""
    engine = front.engine
    reason = await engine.trouble()
    if reason is None:
        return Health("draining", "the server is stopping") if front.drain.begun else Health("ok")
    if engine.dead is None:
        return Health("hung", reason)
    after = engine.retry_after
    return Health("dead" if after is None else "restarting", reason, after)
