"""Several ranks that compute a model together: this process is the first, and tells processes beside it what to do.

The first rank is driven as one alone would be. Whatever it is asked for goes to the others as a message before it does it itself;
while they compute, they meet in the sums and gathers of the model (`sapwood.parallel`). Each has tables, caches and graphs of its own,
and draws the same tokens, since all have the same logits to the bit; what the first has drawn counts. One that ends, fails or
stands still ends the step that runs with an error that names it, and with that the engine.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from sapwood.base.adapter import Adapter
from sapwood.base.adapters import AdapterHost
from sapwood.base.errors import ConfigError, Lost
from sapwood.base.packing import pack_late, pack_plan, unpack_late, unpack_plan
from sapwood.base.pages import Pager, Rooms
from sapwood.base.plan import Bits, Floats, Ints, LatePart, Longs, Masks, Outcome, Plan
from sapwood.base.stake import Ready
from sapwood.base.trial import Trial
from sapwood.base.weights import Given, Group, Held, Level, Sent
from sapwood.config.devices import rules_of
from sapwood.config.options import Config
from sapwood.config.resolve import page_bytes
from sapwood.executor.base import Executor, Measured
from sapwood.executor.pages import LOAD, SAVE, RankPager, RankPages
from sapwood.parallel.segment import Segment

if TYPE_CHECKING:
    from sapwood.arch.network import Network
    from sapwood.hub.draft import DraftModel
    from sapwood.hub.files import ModelFiles

T = TypeVar("T")

BEAT_SECONDS = 0.5
STILL_SECONDS = 30.0  # without a beat, after which a rank is taken to stand still
_LOOK_SECONDS = 0.1


class Process(Protocol):
    """A process of another rank."""

    def tell(self, message: bytes) -> None:
        """Its `RankStart`; an empty one wakes it up later."""
        ...

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        ...

    def end(self) -> None: ...


class RankStart(msgspec.Struct, frozen=True):
    """What another rank's process is told: its resolved configuration, where the ranks' memory is, and which of them it is."""

    config: Config
    path: str
    rank: int
    size: int
    max_drafts: int


class _Report(msgspec.Struct, frozen=True):
    """What a rank has measured: bytes for its KV cache, and those of a page of each group."""

    kv_bytes: int
    page_bytes: list[int]


class Ranks:
    """The Executor of the ranks of `segment`, of which `here` is the first; `spawn` begins the process of another one
    (`sapwood.engine.rank`)."""

    def __init__(self, here: Executor, segment: Segment, spawn: Callable[[], Process]) -> None:
        self._here, self._segment = here, segment
        self._others = {rank: spawn() for rank in range(1, segment.size)}
        threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    def scout(self, config: Config, model: DraftModel) -> Callable[[Ints], Floats]:
        return self._here.scout(of_rank(config, 0), model)

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        path, size = str(self._segment.path), self._segment.size
        for rank, process in self._others.items():
            start = RankStart(of_rank(config, rank), path, rank, size, max_drafts)
            process.tell(msgspec.msgpack.encode(start))
        try:
            mine = of_rank(config, 0)
            measured = self._here.start(mine, decoder, files, max_drafts=max_drafts, draft=draft)
            own = _report(mine, measured)
            told = [self._segment.told(rank) for rank in self._others]
            self._segment.check()  # one that is lost has said why in place of its report
            found = [msgspec.msgpack.decode(one, type=_Report) for one in told]
        except BaseException:
            self._end()
            raise
        finally:
            self._segment.forget()
        if any(len(one.page_bytes) != len(own.page_bytes) for one in found):
            self._end()
            raise Lost("the ranks' layers keep keys and values of other kinds")
        self._page_bytes = [one.page_bytes for one in (own, *found)]
        self._apart = rules_of(config.device.device).own_memory
        pages = min(one.kv_bytes / sum(one.page_bytes) for one in (own, *found))
        return replace(measured, kv_bytes=int(pages * sum(own.page_bytes)))

    def allocate(self, num_pages: Sequence[int]) -> None:
        self._all(b"a", msgspec.msgpack.encode(list(num_pages)), lambda: self._here.allocate(num_pages))

    def capture(self) -> None:
        self._all(b"c", b"", self._here.capture)

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        message = msgspec.msgpack.encode((list(trials), budget))
        return self._all(b"t", message, lambda: self._here.time_steps(trials, budget=budget))

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> Pager:
        if self._apart:
            raise ConfigError(
                "stores of KV and several ranks (--tensor-parallel-size, --pipeline-parallel-size) go together on CPUs alone yet: leave out one "
                "of the two."
            )
        made = RankPager(self._here, self._segment, self._all, num_blocks, self._page_bytes)
        self._segment.settle(b"d", self._wake)  # all have found its memory
        made.let_go()
        return made

    def adapters(self) -> AdapterHost:
        return _Everywhere(self._here.adapters(), self._all)

    def forward(self, plan: Plan) -> Any:
        return self._all(b"f", pack_plan(plan), lambda: self._here.forward(plan))

    def proposed(self, work: Any) -> Ints:
        return self._here.proposed(work)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return self._here.allocate_masks(num_rows, width)

    def sample(self, work: Any, late: tuple[LatePart, ...] = ()) -> None:
        self._all(b"s", pack_late(late), lambda: self._here.sample(work, late))

    def result(self, work: Any) -> Outcome:
        return self._all(b"r", b"", lambda: self._here.result(work))

    def tidy(self) -> bool:
        return self._all(b"i", b"", self._here.tidy)

    def expert_tokens(self) -> Longs:
        return self._here.expert_tokens()

    def check_weights(self, given: Given) -> None:
        self._here.check_weights(given)  # which knows what the others have

    def take_weights(self, given: Given) -> None:
        self._all(b"n", msgspec.msgpack.encode(given), lambda: self._here.take_weights(given))
        self._segment.settle(b"d", self._wake)  # who says that they are taken speaks for all

    def join(self, group: Group) -> None:
        self._all(b"j", msgspec.msgpack.encode(group), lambda: self._here.join(group))

    def leave(self, group_name: str) -> None:
        self._all(b"g", group_name.encode(), lambda: self._here.leave(group_name))

    def receive(self, sent: Sent, folder: str) -> None:
        self._all(b"v", msgspec.msgpack.encode((sent, folder)), lambda: self._here.receive(sent, folder))

    def release(self, held: Sequence[Held], level: Level) -> None:
        self._all(b"z", msgspec.msgpack.encode((list(held), level)), lambda: self._here.release(held, level))

    def restore(self, held: Sequence[Held]) -> None:
        self._all(b"w", msgspec.msgpack.encode(list(held)), lambda: self._here.restore(held))

    def shutdown(self) -> None:
        self._end()
        self._here.shutdown()

    def _all(self, what: bytes, message: bytes, run: Callable[[], T]) -> T:
        """Have all ranks do something, this one by `run`. Raises Lost if one does not, after which nothing goes on."""
        try:
            self._segment.check()
            self._segment.send(what + message, self._wake)
            return run()
        except Lost:
            raise
        except BaseException as error:  # the others are amid what this one has left
            self._segment.raise_alarm(0, f"has failed: {type(error).__name__}: {error}")
            if isinstance(error, Exception):
                raise Lost(f"rank 0 has failed: {type(error).__name__}: {error}") from error
            raise

    def _wake(self, rank: int) -> None:
        self._others[rank].tell(b"")

    def _end(self) -> None:
        processes, self._others = self._others, {}
        for process in processes.values():
            process.end()

    def look(self, beats: dict[int, tuple[int, float]]) -> None:
        """Raise the alarm for a rank that has ended, or whose `beats`, counts with the times of the last, have stopped."""
        now = monotonic()
        for rank, process in self._others.items():
            count = self._segment.beats(rank)
            if rank not in beats or beats[rank][0] != count:
                beats[rank] = count, now
            if (code := process.poll()) is not None:
                self._segment.raise_alarm(rank, f"has ended ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
            elif count and now - beats[rank][1] > STILL_SECONDS:
                self._segment.raise_alarm(rank, f"has stood still for {STILL_SECONDS:.0f} s")


class _Everywhere:
    """Adapters in the memory of all ranks: what the first is asked to fetch or to forget, the others are told to. Each reads its own part."""

    def __init__(self, here: AdapterHost, all: Callable[[bytes, bytes, Callable[[], None]], None]) -> None:
        self._here, self._all = here, all
        self.num_slots = here.num_slots

    def fetch(self, adapter: Adapter) -> None:
        self._all(b"l", msgspec.msgpack.encode(adapter), lambda: self._here.fetch(adapter))

    def fetched(self, adapter: Adapter) -> Ready:
        if not self._here.knows(adapter):
            self.fetch(adapter)
        return self._here.fetched(adapter)

    def knows(self, adapter: Adapter) -> bool:
        return self._here.knows(adapter)

    def lend(self, slot: int, adapter: Adapter) -> None:
        self._all(b"k", msgspec.msgpack.encode((slot, adapter)), lambda: self._here.lend(slot, adapter))

    def forget(self, adapter: Adapter) -> None:
        self._all(b"u", msgspec.msgpack.encode(adapter), lambda: self._here.forget(adapter))

    def wait(self, seconds: float) -> None:
        self._here.wait(seconds)

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        return self._here.gauges()

    def close(self) -> None:
        self._here.close()


def _watch(ranks: weakref.ref[Ranks]) -> None:
    beats: dict[int, tuple[int, float]] = {}
    while (found := ranks()) is not None:
        found.look(beats)
        del found
        sleep(_LOOK_SECONDS)


def of_rank(config: Config, rank: int) -> Config:
    """A rank's configuration: it has a device of its own where these have numbers, those behind the one that was asked for."""
    kind, numbered, index = config.device.device.partition(":")
    if not numbered:
        return config
    return replace(config, device=replace(config.device, device=f"{kind}:{int(index) + rank}"))


def _report(config: Config, measured: Measured) -> _Report:
    return _Report(measured.kv_bytes, [page_bytes(config, group) for group in measured.groups])


class Follower:
    """Another rank than the first: does what messages say, until its process is ended. `woken` is set when one may have come."""

    def __init__(self, here: Executor, segment: Segment, woken: threading.Event) -> None:
        self._here, self._segment, self._woken = here, segment, woken
        self._flying: deque[Any] = deque()  # steps that have been forwarded, and not read
        self._sampled = 0  # of these

    def start(self, start: RankStart, decoder: Network, files: ModelFiles, draft: DraftModel | None) -> None:
        """Take a part of the model. Raises UserError, and Lost where another rank is."""
        measured = self._here.start(start.config, decoder, files, max_drafts=start.max_drafts, draft=draft)
        self._segment.report(start.rank, msgspec.msgpack.encode(_report(start.config, measured)))

    def run(self) -> None:
        """Raises Lost where another rank is."""
        pages = RankPages(self._here, self._segment)
        does: Mapping[str, Callable[[bytes], Any]] = {
            "p": pages.open,
            SAVE.decode(): pages.save,
            LOAD.decode(): pages.load,
            "a": lambda rest: self._here.allocate(msgspec.msgpack.decode(rest)),
            "c": lambda rest: self._here.capture(),
            "t": self._time,
            "f": lambda rest: self._flying.append(self._here.forward(unpack_plan(rest))),
            "s": self._sample,
            "r": self._read,
            "i": lambda rest: self._here.tidy(),
            "l": lambda rest: self._here.adapters().fetch(msgspec.msgpack.decode(rest, type=Adapter)),
            "k": lambda rest: self._here.adapters().lend(*msgspec.msgpack.decode(rest, type=tuple[int, Adapter])),
            "u": lambda rest: self._here.adapters().forget(msgspec.msgpack.decode(rest, type=Adapter)),
            "n": lambda rest: self._here.take_weights(msgspec.msgpack.decode(rest, type=Given)),
            "j": lambda rest: self._here.join(msgspec.msgpack.decode(rest, type=Group)),
            "g": lambda rest: self._here.leave(rest.decode()),
            "v": lambda rest: self._here.receive(*msgspec.msgpack.decode(rest, type=tuple[Sent, str])),
            "d": lambda rest: None,
            "z": lambda rest: self._here.release(*msgspec.msgpack.decode(rest, type=tuple[list[Held], Level])),
            "w": lambda rest: self._here.restore(msgspec.msgpack.decode(rest, type=list[Held])),
        }
        while True:
            message = self._segment.receive(self._woken)
            does[chr(message[0])](message[1:])

    def _time(self, rest: bytes) -> None:
        trials, budget = msgspec.msgpack.decode(rest, type=tuple[list[Trial], float])
        self._here.time_steps(trials, budget=budget)

    def _sample(self, rest: bytes) -> None:
        late = tuple(self._placed(part) if isinstance(part, Masks) else part for part in unpack_late(rest))
        self._here.sample(self._flying[self._sampled], late)
        self._sampled += 1

    def _placed(self, masks: Masks) -> Masks:
        bits_MW = self._here.allocate_masks(*masks.bits_MW.shape)
        bits_MW[:] = masks.bits_MW
        return Masks(bits_MW)

    def _read(self, rest: bytes) -> None:
        self._here.result(self._flying.popleft())
        self._sampled -= 1


def beat(segment: Segment) -> None:
    """Show for ever that this process lives."""
    while True:
        segment.beat()
        sleep(BEAT_SECONDS)


def segment_of(start: RankStart) -> Segment:
    return Segment(Path(start.path), start.rank, start.size)
