"""The constraints of all running requests: opened when they arrive, fed when tokens land, asked before tokens are drawn.

Suffix legend: M rows that a grammar restricts, W int32 words of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import llguidance

from sapwood.base.errors import GrammarError
from sapwood.base.plan import Bits
from sapwood.base.request import Request
from sapwood.base.stake import Landed, Ruling
from sapwood.grammar.budget import BudgetConstraint
from sapwood.grammar.compiler import Compiled, Compiler
from sapwood.grammar.constraint import ALL, Constraint, Follows, allows
from sapwood.grammar.marks import Marks
from sapwood.grammar.vocabulary import Vocabulary
from sapwood.grammar.words import Words

SLOW_SECONDS = 0.02  # of this thread, for one token of one grammar: the whole batch waits for it
MOST_STRIKES = 3
_WATCH_STEPS = 16  # after a slow step, so many are timed grammar by grammar
_CROWD_PER_TOKEN = 8  # requests that may be held up a little for each draw that is saved
_CROWD = 128  # of more requests than this, too many would have to be forced at once: they are not even asked
_PIECE = 512  # tokens that become known at once: the next ones follow when these have been fed
_FEW = 4  # masks that are filled sooner than other threads wake up


class Head(NamedTuple):
    """A row that draws at `position`, and behind each of its `drafts` that turns out to be right."""

    request: Request
    position: int
    drafts: list[int]


class _DeadEnd(NamedTuple):
    """Nothing may follow there."""

    position: int
    why: str


class Constraints:
    """Lives with the engine's loop, in its thread. `allocate(M, W)` gives memory for masks; without W, of the usual width.

    With `jump` tokens that a grammar forces are not drawn one by one, except for requests that want more of them.

    Attributes:
        counters: Requests, rows that were masked, and tokens that were known without being drawn.
        seconds: What masks took while the device computed, and what following the tokens took.
    """

    def __init__(
        self,
        compiler: Compiler,
        allocate: Callable[[int, int | None], Bits],
        *,
        jump: bool = True,
        threads: int | None = None,
    ) -> None:
        self.compiler = compiler
        self.counters = {"constrained": 0, "masks": 0, "forced_tokens": 0}
        self.seconds = {"mask_seconds": 0.0, "accept_seconds": 0.0}
        self._allocate = allocate
        self._jump = jump
        self._threads = threads
        self._executor: llguidance.LLExecutor | None = None
        self._opening: dict[int, Future[Compiled] | Future[Vocabulary]] = {}
        self._watching = 0  # steps for which each grammar is timed by itself
        self._dead_ends: dict[int, _DeadEnd] = {}  # behind drafts of the latest masks, by request

    def begin(self, request: Request) -> str | None:
        """Have a request's grammar compiled and give it its constraint: None while that takes, then what is wrong, if
        anything is. A request whose constraint was spoiled gets a grammar of its own, and goes on where it was."""
        grammar = request.params.grammar
        again = request.constraint is not None
        if request.id not in self._opening:
            self.counters["constrained"] += grammar is not None and not again
            self._opening[request.id] = (
                self.compiler.vocabulary if grammar is None else self.compiler.compile(grammar, alone=again)
            )
        compiling = self._opening[request.id]
        if not compiling.done():
            return None
        del self._opening[request.id]
        return _begin(request, compiling, alone=again) or ""

    def wait(self, seconds: float) -> None:
        """Return once a grammar is compiled, or after that time."""
        futures: list[Future[Any]] = list(self._opening.values())
        wait(futures, seconds, return_when="FIRST_COMPLETED")

    def forget(self, request: Request) -> None:
        """A request that waits for its grammar is gone."""
        self._opening.pop(request.id, None)

    def accept(self, landed: Sequence[Landed], *, crowd: int = 0) -> dict[int, Ruling]:
        """Take in tokens; what follows from them, by row, where anything does.

        A step that feeds forced tokens has another shape than one in which every row advances by one, and all who run
        pay for that: of `crowd` requests tokens are forced only if that saves enough of them a draw.
        """
        began = perf_counter()
        jump = self._jump and crowd <= _CROWD
        begins = [one.request.constraint.position for one in landed]
        found = {one.row: self._take(one, jump) for one in landed}
        saved = sum(max(len(found[one.row]) - one.flying, 0) for one in landed)
        worth = saved * _CROWD_PER_TOKEN >= crowd
        rulings = {}
        for one, begin in zip(landed, begins, strict=True):
            constraint: Follows = one.request.constraint
            taken = constraint.position - begin
            if constraint.error and not (one.ended and taken == len(one.tokens)):
                # An end that was drawn where nothing could follow is none; what goes wrong behind a true one does not matter.
                error = constraint.error
                rulings[one.row] = Ruling(taken=taken, later=True) if constraint.spoiled else Ruling(error=error)
                continue
            forced = found[one.row][:_PIECE] if worth and len(found[one.row]) > one.flying else []
            ruling = self._rule(constraint, forced, taken=taken)
            if ruling is not None:
                rulings[one.row] = ruling
        took = perf_counter() - began
        self.seconds["accept_seconds"] += took
        self._note(took, len(landed))
        return rulings

    def _take(self, landed: Landed, jump: bool) -> list[int]:
        """Take a row's tokens in; those that are forced behind them, and might be known at once."""
        constraint: Follows = landed.request.constraint
        began = thread_time() if self._watching else 0.0
        dead_end = self._dead_ends.get(landed.request.id)
        for token in landed.tokens:
            if dead_end is not None and constraint.position == dead_end.position:
                constraint.error = dead_end.why
            if constraint.done or not constraint.accept(token):
                break
        wanted = jump and not (landed.ended or constraint.error) and not landed.request.params.details
        forced = constraint.forced() if wanted else []
        if self._watching:
            self._time(constraint, thread_time() - began)
        return forced

    def _rule(self, constraint: Follows, forced: list[int], *, taken: int) -> Ruling | None:
        """Take in the forced tokens that are to be known, behind `taken` that were drawn."""
        known = []
        for token in forced:
            if constraint.done or not constraint.accept(token):
                break
            known.append(token)
        self.counters["forced_tokens"] += len(known)
        if not known and not constraint.done:
            return None
        return Ruling(taken=taken, forced=tuple(known), done=constraint.done)

    def masks(self, heads: Sequence[Head | None]) -> Bits:
        """Which tokens may be drawn where: one row of bits for each of the `heads`, and one for each of their drafts.

        All are allowed where it does not matter any more, which None stands for, and behind a draft that cannot be right.
        """
        began = perf_counter()
        live = [head for head in heads if head is not None]
        num_rows = len(heads) + sum(len(head.drafts) for head in live)
        bits_MW = self._allocate(num_rows, live[0].request.constraint.width if live else None)
        if num_rows > len(live):
            bits_MW.fill(ALL)
        self._dead_ends.clear()
        plain: dict[int, Follows] = {}
        place = 0
        for head in heads:
            if head is not None and head.request.constraint.position == head.position:
                if head.drafts:
                    run = bits_MW[place : place + 1 + len(head.drafts)]
                    dead_end = _fill_run(head.request.constraint, run, head.drafts)
                    if dead_end is not None:
                        self._dead_ends[head.request.id] = dead_end
                else:
                    plain[place] = head.request.constraint
            place += 1 if head is None else 1 + len(head.drafts)
        self._fill_plain(plain, bits_MW)
        took = perf_counter() - began
        self.counters["masks"] += len(live)
        self.seconds["mask_seconds"] += took
        self._note(took, len(live))
        return bits_MW

    def _fill_plain(self, plain: dict[int, Follows], bits_MW: Bits) -> None:
        """Rows by their places, each with a single mask: all at once."""
        rows = list(bits_MW)
        jobs: list[tuple[llguidance.LLMatcher, int]] = []
        for place, constraint in plain.items():
            matcher = constraint.begin(rows[place])
            if matcher is not None:
                jobs.append((matcher, place))
        if self._watching:
            self._fill_watched(jobs, bits_MW, plain)
        else:
            self._fill(jobs, bits_MW)
        for place, constraint in plain.items():
            constraint.finish(rows[place])

    def _fill(self, jobs: list[tuple[llguidance.LLMatcher, int]], bits_MW: Bits) -> None:
        num_rows, width = bits_MW.shape
        if len(jobs) <= _FEW:
            for matcher, place in jobs:
                matcher.unsafe_compute_mask_ptr(bits_MW[place].ctypes.data, 4 * width)
        else:
            if self._executor is None:
                self._executor = llguidance.LLExecutor(self._threads)
            self._executor.unsafe_compute_mask_ptr(jobs, bits_MW.ctypes.data, 4 * width, num_rows)

    def _fill_watched(
        self, jobs: list[tuple[llguidance.LLMatcher, int]], bits_MW: Bits, live: dict[int, Follows]
    ) -> None:
        for matcher, place in jobs:
            began = thread_time()
            matcher.unsafe_compute_mask_ptr(bits_MW[place].ctypes.data, 4 * bits_MW.shape[1])
            self._time(live[place], thread_time() - began)
        self._watching -= 1

    def _note(self, seconds: float, num_rows: int) -> None:
        """A step that took too long is not blamed on anybody yet: the machine may have been busy."""
        if seconds > SLOW_SECONDS * (1 + num_rows / 64):
            self._watching = _WATCH_STEPS

    def _time(self, constraint: Follows, seconds: float) -> None:
        if seconds > SLOW_SECONDS:
            constraint.strikes += 1
            if constraint.strikes >= MOST_STRIKES and not constraint.error:
                constraint.error = (
                    f"its grammar takes too long: more than {1000 * SLOW_SECONDS:.0f} ms for a token, "
                    f"{constraint.strikes} times"
                )

    def gauges(self) -> tuple[dict[str, int], dict[str, float]]:
        """What was compiled, masked and forced since the start, and how long that took."""
        compiler = self.compiler
        counters = self.counters | {"compiled_grammars": compiler.num_compiled}
        return counters, self.seconds | {"compile_seconds": compiler.seconds}

    def close(self) -> None:
        self.compiler.close()


def _fill_run(constraint: Follows, bits_MW: Bits, drafts: Sequence[int]) -> _DeadEnd | None:
    """Masks of one row: behind nothing, then behind one draft more each, as long as the drafts are allowed, or they end."""
    taken = 0
    for bits_W, draft in zip(bits_MW, (*drafts, None), strict=True):
        matcher = constraint.begin(bits_W)
        if matcher is not None:
            matcher.unsafe_compute_mask_ptr(bits_W.ctypes.data, 4 * len(bits_W))
        constraint.finish(bits_W)
        if draft is None or constraint.error or not allows(bits_W, draft):
            break
        if not constraint.accept(draft):
            constraint.rollback(0)  # it may not be drawn
            break
        taken += 1
        if constraint.done:
            break
    dead_end = _DeadEnd(constraint.position, constraint.error) if constraint.error else None
    if taken:
        constraint.rollback(taken)
    return dead_end


def _begin(request: Request, compiling: Future[Compiled] | Future[Vocabulary], *, alone: bool) -> str | None:
    """Give a request its constraint, at the end of its output so far; what is wrong where that cannot be."""
    try:
        ready = compiling.result()
    except GrammarError as error:
        return f"its grammar cannot be used: {error}"
    except Exception as error:  # of a thread: it must reach whoever waits for the request
        return f"its grammar could not be compiled: {type(error).__name__}: {error}"
    params, start, ends = request.params, request.prompt_len, request.stop_ids
    vocabulary = ready.vocabulary if isinstance(ready, Compiled) else ready
    inner: Follows | None = None
    if isinstance(ready, Compiled):
        inner = Constraint(ready, position=start, min_len=request.min_len, stop_ids=ends, alone=alone)
    size = vocabulary.tokenizer.vocab_size
    if params.timestamps is not None:
        inner = Marks(params.timestamps, vocab_size=size, position=start)
    if params.selective:
        inner = Words(params, inner, vocab_size=size, position=start, min_len=request.min_len, stop_ids=ends)
    # Outermost, since what ends thoughts is not the request's to forbid.
    request.constraint = (
        inner if params.thinking is None else BudgetConstraint(params.thinking, vocabulary, inner, position=start)
    )
    for token in request.tokens[request.prompt_len :].tolist():
        if not request.constraint.accept(token):
            return str(request.constraint.error)
    return None
