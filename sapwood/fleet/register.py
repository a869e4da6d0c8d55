"""Who is where: what servers tell of themselves, once a second, and what routers ask for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any

from sapwood.fleet.scaling import Load

SILENT_SECONDS = 6.0  # after which one that tells nothing is not there
YOUNG_SECONDS = 2.5  # in which a new register hears of all who are there
_MOST_LINES = 1000  # of the log of each, the last ones
_KEPT = 64  # servers that have gone whose last words are kept


@dataclass
class _Entry:
    model: str
    url: str
    node: str
    since: float
    told: float
    load: Load = field(default_factory=Load)
    state: str = "ready"  # or "draining", "gone"
    drains: bool = False
    left: bool = False  # it said so itself, and is not there again
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))


class Register:
    """Servers by name, and what waits for them. It keeps nothing that is not told again: one that begins anew knows all within a second,
    and says nothing to routers before."""

    def __init__(self, clock: Callable[[], float] = monotonic, now: Callable[[], float] = time) -> None:
        self._clock, self._now, self._began = clock, now, clock()
        self._entries: dict[str, _Entry] = {}
        self._queued: dict[str, dict[str, tuple[float, int]]] = {}
        self._routers: dict[str, tuple[float, str]] = {}

    # -- servers --------------------------------------------------------------------------------------------------

    def tell(self, name: str, model: str, url: str, node: str, load: Load, lines: Sequence[str]) -> dict[str, Any]:
        """A server is at `url`, or is starting yet where that is "". Returns whether it is to drain, and the requests that wait for its
        model."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(model, url, node, self._now(), self._clock())
        if entry.state == "gone" and not entry.left:
            entry.state = "draining" if entry.drains else "ready"
        entry.url, entry.load, entry.told = url, load, self._clock()
        entry.lines.extend(lines)
        return {"drains": entry.drains, "queued": self.queued(model)}

    def leave(self, name: str, lines: Sequence[str] = ()) -> None:
        """A server ends: it gets nothing new, whatever it tells from then on."""
        if (entry := self._entries.get(name)) is not None:
            entry.left = True
            entry.lines.extend(lines)
            self._gone(name)

    def drain(self, name: str) -> list[str]:
        """Have one of that name, or all of a model, get nothing new. Returns who that is; nobody if there is none."""
        self._look()
        found = [one for one, entry in self._entries.items() if name in (one, entry.model) and entry.state == "ready"]
        for one in found:
            self._entries[one].state, self._entries[one].drains = "draining", True
        return found

    def urls(self, model: str) -> list[str]:
        """Where requests for a model may be sent."""
        self._look()
        there = [one for one in self._entries.values() if one.model == model and one.state == "ready" and one.url]
        return sorted(one.url for one in there)

    # -- routers --------------------------------------------------------------------------------------------------

    def wants(self, router: str, url: str, queued: dict[str, int]) -> dict[str, list[str]]:
        """A router tells how many requests wait at it, by model. Returns where those models' servers are, if that is known
        already."""
        now = self._clock()
        self._routers[router] = now, url
        for model, count in queued.items():
            self._queued.setdefault(model, {})[router] = now, count
        known = now - self._began >= YOUNG_SECONDS
        return {model: self.urls(model) for model in queued} if known else {}

    def queued(self, model: str) -> int:
        """Requests that wait at routers."""
        late = self._clock() - SILENT_SECONDS
        return sum(count for told, count in self._queued.get(model, {}).values() if told >= late)

    # -- whoever looks --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it, as JSON."""
        self._look()
        late = self._clock() - SILENT_SECONDS
        servers = [
            {
                "name": name,
                "model": one.model,
                "url": one.url,
                "node": one.node,
                "state": one.state if one.url or one.state == "gone" else "starting",
                "since": one.since,
                **one.load._asdict(),
            }
            for name, one in self._entries.items()
        ]
        return {
            "servers": servers,
            "routers": sorted(url for told, url in self._routers.values() if told >= late),
            "queued": {model: self.queued(model) for model in self._queued},
        }

    def logs(self, name: str, last: int) -> dict[str, list[str]]:
        """The last lines of one of that name, or of all of a model, by name."""
        found = {one: list(entry.lines) for one, entry in self._entries.items() if name in (one, entry.model)}
        return {one: lines[-last:] if last else [] for one, lines in found.items()}

    def _look(self) -> None:
        late = self._clock() - SILENT_SECONDS
        for name in [name for name, one in self._entries.items() if one.told < late and one.state != "gone"]:
            self._gone(name)

    def _gone(self, name: str) -> None:
        self._entries[name].state = "gone"
        gone = [name for name, entry in self._entries.items() if entry.state == "gone"]
        for name in gone[:-_KEPT]:
            del self._entries[name]
