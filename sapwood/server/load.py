"""How much is going on, by the engine's last report."""

from __future__ import annotations

from typing import NamedTuple

from sapwood.base.wire import Stats
from sapwood.engine.client import EngineClient

_NOTHING = Stats(0, 0, {}, {}, [])


class Load(NamedTuple):
    """Requests that run and wait; tokens of the cache that running ones hold, and what it could hold, of the fullest pool."""

    running: int
    waiting: int
    used_tokens: int
    most_tokens: int
    paused: bool

    @property
    def usage(self) -> float:
        return self.used_tokens / self.most_tokens if self.most_tokens else 0.0


def load_of(engine: EngineClient) -> Load:
    stats, facts = engine.stats or _NOTHING, engine.facts
    size = facts.page_size
    pools = [(total - free - evictable, total) for total, free, evictable in stats.pages]
    used, total = max(pools, key=lambda pool: pool[0] / max(pool[1], 1), default=(0, max(facts.num_pages, default=0)))
    return Load(stats.running, stats.waiting, used * size, total * size, stats.paused)
