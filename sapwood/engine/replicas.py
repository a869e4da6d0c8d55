"""Several engines with the same model behind the face of one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sapwood.base.adapter import Adapter
from sapwood.base.errors import EngineDead
from sapwood.base.media import Media, Span, keyed
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta, Facts, Stats
from sapwood.config import Config
from sapwood.config.flags import replace
from sapwood.engine import keeper, merged
from sapwood.engine.client import AsyncEngine, Follower, Stream
from sapwood.engine.following import generated
from sapwood.engine.placement import Placement, Reason
from sapwood.engine.spawn import Child
from sapwood.engine.tasks import end

log = logging.getLogger(__name__)

HUSH_SECONDS = 3.0  # an engine that is waited for and has said nothing for so long gets nothing more, while others do
_LASTING = {"pause": True, "hold": True, "continue": False}
"""Commands that another engine in the place of a dead one has to be given too; the last ends them."""


class Replicas:
    """Keeps the protocol `EngineClient`, and what else fronts use of an `AsyncEngine`.

    A request goes to one of them as `Placement` says, and ends with it; questions and commands go to all that live. It is well
    while one of them is.
    """

    def __init__(self, engines: Sequence[AsyncEngine]) -> None:
        self._engines = tuple(engines)
        self.lost = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None  # called when one has died, and when there is another
        self._placement = Placement(engines[0].facts.page_size)
        self._placed: Counter[Reason] = Counter()
        self._together: tuple[Follower, list[int], AsyncEngine] | None = None  # the last request
        self._standing: list[tuple[str, dict[str, Any]]] = []  # commands that last
        self._told: dict[AsyncEngine, asyncio.Task[None]] = {}  # who is being given them
        self._version: str | None = None  # of the weights that were given last
        self._updates = 0
        self._past: list[Stats] = []  # what those had told that have died
        for number, one in enumerate(engines):
            one.changed = partial(self._changed, number)

    @property
    def replicas(self) -> Sequence[AsyncEngine]:
        return self._engines

    @property
    def facts(self) -> Facts:
        return merged.facts_of([one.facts for one in self._engines])

    @property
    def stats(self) -> Stats | None:
        """Of all that live and have told theirs; what others have counted counts too, as far as they have told it."""
        live = [one.stats for one in self._engines if one.stats is not None and one.dead is None]
        if not live:
            return None
        stats = merged.stats_of(live, self._past)
        stats.counters.update({f"placed_{reason}": count for reason, count in self._placed.items()})
        return stats

    @property
    def dead(self) -> str | None:
        whys = [one.dead for one in self._engines]
        return "; ".join(dict.fromkeys(filter(None, whys))) if all(whys) else None

    @property
    def retry_after(self) -> float | None:
        if self.dead is None:
            return None
        return min((after for one in self._engines if (after := one.retry_after) is not None), default=None)

    @property
    def restarts(self) -> int:
        return sum(one.restarts for one in self._engines)

    @property
    def weight_version(self) -> str:
        """See `EngineClient.weight_version`; that of the first that requests go to."""
        able = self._able()
        return next(one.weight_version for one in self._engines if one in able)

    async def trouble(self) -> str | None:
        found = await asyncio.gather(*(one.trouble() for one in self._engines))
        return None if None in found else "; ".join(dict.fromkeys(why for why in found if why))

    def end_at(self, eos_ids: Iterable[int]) -> None:
        """See `AsyncEngine.end_at`."""
        ids = list(eos_ids)
        for one in self._engines:
            one.end_at(ids)

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        follower: Follower,
        *,
        salt: str = "",
        adapter: Adapter | None = None,
        **how: Any,
    ) -> Stream:
        """See `EngineClient.submit`."""
        able = self._able()
        while True:
            apart = salt, "" if adapter is None else adapter.id
            chosen, reason = self._choose(able, tokens, follower, apart, how.get("media", ()), how.get("spans", ()))
            try:
                stream = chosen.submit(tokens, params, follower, salt=salt, adapter=adapter, **how)
            except EngineDead:
                able.discard(chosen)  # it has gone just now
                if not able:
                    raise
                continue
            self._placed[reason] += 1
            self._together = follower, tokens, chosen
            return stream

    def _choose(
        self,
        able: Collection[AsyncEngine],
        tokens: list[int],
        follower: Follower,
        apart: tuple[str, str],
        media: Sequence[Media],
        spans: Sequence[Span],
    ) -> tuple[AsyncEngine, Reason]:
        if self._together is not None:
            last, same, engine = self._together
            if last is follower and same is tokens and engine in able:
                return engine, "together"
        busy = {number: one.live for number, one in enumerate(self._engines) if one in able}
        keys = keyed(np.array(tokens, np.int32), media, spans).tolist() if spans else tokens
        number, reason = self._placement.choose(keys, apart, busy)
        return self._engines[number], reason

    def generate(self, tokens: list[int], params: SamplingParams, **how: Any) -> AsyncGenerator[Delta]:
        """See `generated`."""
        return generated(self, tokens, params, **how)

    async def control(self, what: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
        """See `wire.Control`. Raises EngineDead where no engine answers."""
        if what == "update_weights":
            return await self._update(about or {})
        return merged.reply_of(what, [body for _, body in await self._asked(what, about)])

    async def _update(self, about: dict[str, Any]) -> dict[str, Any]:
        """In two steps, so that none takes what another one refuses."""
        checked = merged.reply_of("check_weights", [body for _, body in await self._asked("check_weights", about)])
        if "error" in checked:
            return checked
        self._updates += 1
        given = about.get("version")
        version = str(self._updates) if given is None else given
        told = await self._asked("update_weights", about | {"version": version, "checksums": {}})  # which were compared
        bodies = [body for _, body in told if "error" not in body]
        if not bodies:
            return told[0][1]
        self._version = version
        if not (refused := [(self._engines.index(one), body["error"]) for one, body in told if "error" in body]):
            return merged.reply_of("update_weights", bodies)
        numbers = ", ".join(str(number) for number, _ in refused)
        return bodies[0] | {
            "error": f"{refused[0][1]} So it is with {numbers} of {len(self._engines)} engines, which gets no requests until it is given weights "
            f"again; the others have version {version}."
        }

    async def _asked(self, what: str, about: dict[str, Any] | None) -> list[tuple[AsyncEngine, dict[str, Any]]]:
        """The answers of those that live, one at least."""
        if what in _LASTING:
            self._standing = [*self._standing, (what, about or {})] if _LASTING[what] else []
        live = [one for one in self._engines if one.dead is None] or self._engines[:1]  # which raises why
        found = await asyncio.gather(*(one.control(what, about) for one in live), return_exceptions=True)
        for told in found:
            if isinstance(told, BaseException) and not isinstance(told, EngineDead):
                raise told
        bodies = [(one, told) for one, told in zip(live, found, strict=True) if not isinstance(told, BaseException)]
        if not bodies:
            raise next(told for told in found if isinstance(told, BaseException))
        return bodies

    def _able(self) -> set[AsyncEngine]:
        """Those that a request may go to: that live, have the weights that were given last, have room, speak and stand as the others do, as
        far as there are such."""
        found = set(self._engines)
        faults: tuple[Callable[[AsyncEngine], bool], ...] = (
            lambda one: one.dead is not None or one in self._told,
            lambda one: self._version is not None and one.weight_version != self._version,
            lambda one: one.full,
            lambda one: one.live > 0 and one.vitals.silent_seconds > HUSH_SECONDS,
        )
        for fails in faults:
            found = {one for one in found if not fails(one)} or found
        return found

    def _changed(self, number: int) -> None:
        """An engine has died, or there is another in its place."""
        one = self._engines[number]
        if one.dead is not None:
            self._placement.forget(number)
            if one.stats is not None:
                self._past = [merged.stats_of((), [*self._past, one.stats])]
            log.warning("engine %d of %d: %s", number, len(self._engines), one.dead)
            if all(other.lost.is_set() for other in self._engines):
                self.lost.set()
        elif self._standing:
            self._told[one] = asyncio.create_task(self._tell(one))
        self.changed()

    async def close(self) -> None:
        """They are to be ended: what becomes of them is of no interest any more."""
        for one in self._engines:
            one.changed = lambda: None
        if self._told:
            await end(*self._told.values())

    async def _tell(self, one: AsyncEngine) -> None:
        """Have a new engine stand as the others do."""
        try:
            with contextlib.suppress(EngineDead):
                for what, about in tuple(self._standing):
                    await one.control(what, about)
        finally:
            del self._told[one]


@contextlib.asynccontextmanager
async def start(config: Config, children: Sequence[Child] = ()) -> AsyncIterator[AsyncEngine | Replicas]:
    """Run the engines that a configuration asks for, as `keeper.start` does one: several, unless it says which of them.

    `children` are processes that have been begun for them, in their order.
    """
    size, rank = config.parallel.data_parallel_size, config.parallel.data_parallel_rank
    waiting = list(children)
    if size < 2 or rank is not None:  # fewer than one are refused there
        async with keeper.start(config, waiting[0] if waiting else None) as engine:
            yield engine
        return
    kept = [
        keeper.start(replace(config, "parallel", data_parallel_rank=number), waiting[number] if waiting else None)
        for number in range(size)
    ]
    async with contextlib.AsyncExitStack() as stack:
        starting = [asyncio.create_task(stack.enter_async_context(one)) for one in kept]
        try:
            replicas = Replicas(await asyncio.gather(*starting))
        except BaseException:
            await end(*starting)
            raise
        stack.push_async_callback(replicas.close)
        yield replicas
