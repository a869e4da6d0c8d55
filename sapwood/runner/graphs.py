"""One launch a step: CUDA graphs of whole steps, one for each size that steps are padded to.

A graph holds everything from the frame to the drawn tokens, and finds on the device who its rows are: rows that only
decode, prompt chunks and any mixture of them fit the same graph. It is captured when its size first occurs, after
that very step has been launched kernel by kernel, or before, while there is nothing else to do.

Suffix legend: R rows, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from sapwood.attention.base import RowLimits, Shared
from sapwood.base.plan import Ints, Pages, Plan, Runs
from sapwood.runner import frame, shared
from sapwood.runner.frame import Frame
from sapwood.runner.table import Table
from sapwood.runner.transfer import send

log = logging.getLogger(__name__)

T = TypeVar("T")
Compute = Callable[[Frame, int, RowLimits, Shared | None], T]

_LEAST_TILES = 8
_MIXED_ROWS = (64, 256, 512)
_KINDS = (256, 64, 16)  # rows, or tokens of a mixed step, up to which other kernels are launched than for more
_MOST_DRAFTED = 256  # tokens of a step with drafts that is captured ahead: more of them seldom pay
_MIXED_CHANGES = 4096  # pages that a step with prompt chunks may turn; those of cached prefixes are among them
_NOTHING: Ints = np.zeros(0, np.int32)


class Size(NamedTuple):
    """What a step is padded to. `mixed`: rows may be of any length; else each is one token that yields another. `drafted`: every
    token may be a head; else every row may be one.

    `shared`: there is room for shared runs. A mixed step always has it, since a launch that finds none is cheaper than twice as many graphs.
    """

    tokens: int
    rows: int
    mixed: bool
    shared: bool
    drafted: bool = False

    @property
    def heads(self) -> int:
        return self.tokens if self.drafted else self.rows

    @property
    def limits(self) -> RowLimits:
        return RowLimits(decodes=self.rows, spans=min(self.rows, self.tokens // 2) if self.mixed else 0)


def row_steps(most: int) -> list[int]:
    """Numbers of rows that decode steps are padded to: close enough together that little is computed for nothing."""
    return _steps([1, 2, 4, 8], [(8, 64), (16, 128), (32, 256), (64, 512), (128, most)], most)


def token_steps(most: int) -> list[int]:
    """Numbers of tokens that mixed steps are padded to: a matrix product works on tiles of 64 or 128 rows anyhow."""
    return _steps([16, 32], [(64, 512), (128, 1024), (256, 2048), (512, most)], most)


def mixed_rows(num_rows: int, num_tokens: int, most: int) -> int:
    """Rows of a mixed step: few choices, since they cost no more than logits that nobody reads."""
    return min(num_tokens, most, next(rows for rows in (*_MIXED_ROWS, most) if rows >= min(num_rows, most)))


def _steps(first: list[int], strides: list[tuple[int, int]], most: int) -> list[int]:
    steps = list(first)
    for stride, end in strides:
        steps.extend(range((steps[-1] // stride + 1) * stride, end + 1, stride))
    return [step for step in steps if step < most] + [most]


class Graphs(Generic[T]):
    """The graphs of one model, made for steps of up to `max_tokens` tokens and `max_rows` rows.

    `compute` launches a step given its frame, padded tokens, limits and shared runs, and returns what it leaves on the
    device; it must do so in the same way each time, without waiting for the device. `tile` is the most members of a tile
    of a shared run; without `drafts` steps with drafts fit no graph, nor without `prompts` those with any; if `single`, all steps are rows of one token that share
    nothing. Without `capture`, and once it has failed, steps are
    padded alike and launched kernel by kernel.
    """

    def __init__(
        self,
        compute: Compute[T],
        table: Table,
        *,
        max_rows: int,
        max_tokens: int,
        tile: int,
        drafts: bool = False,
        single: bool = False,
        prompts: bool = True,
        capture: bool = True,
    ) -> None:
        self._compute, self._table, self._tile, self._drafts = compute, table, tile, drafts
        self._single, self._prompts = single, prompts
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._row_steps = np.array(row_steps(max_rows))
        self._token_steps = np.array(token_steps(max(max_tokens, max_rows)))
        self._captured: dict[Size, _Captured[T]] = {}
        self._known_members: tuple[tuple[int, int], shared.Members] | None = None
        self._camera = _Camera(table.device) if capture else None
        self._ahead = self._likely()

    @property
    def num_ahead(self) -> int:
        return len(self._ahead)

    def run(self, plan: Plan) -> T | None:
        """Launch a step, or return None if it is too large or too strange for a graph."""
        size = self._fit(plan)
        if size is None:
            return None
        step = self._captured.get(size)
        if step is None:
            step = self._captured[size] = _Captured(size, self._runs_size(size), self._table)
        if not step.tell(plan, self._members(plan) if size.shared else None):
            return None
        if step.graph is None:
            left = step.launch(self._compute)
            self._capture(step)
            return left
        step.graph.replay()
        return step.left

    def rehearse(self) -> None:
        """Launch steps of all kinds that kernels are compiled for, of nobody's rows."""
        for size in self._kinds():
            step: _Captured[T] = _Captured(size, self._runs_size(size), self._table)
            step.launch(self._compute)

    def _kinds(self) -> Iterable[Size]:
        most = self._max_rows
        shared = (False,) if self._single else (True, False)
        decode = [Size(rows, rows, False, one) for rows in (most, *_KINDS, 2, 1) if rows <= most for one in shared]
        if self._single:
            return dict.fromkeys(decode)
        mixed = [
            self._mixed(self._max_tokens, most),
            *(self._mixed(count, min(count, most)) for count in _KINDS if count <= self._max_tokens),
        ]
        drafted = [size._replace(drafted=True) for size in mixed] if self._drafts else []
        prompts = mixed if self._prompts else []
        return dict.fromkeys(size for size in (*prompts, *drafted, *decode) if size.rows <= most)

    def capture_largest(self) -> None:
        """Capture what takes the most memory, so that the others fit into what it took."""
        if not self._single:
            self._make(self._mixed(self._max_tokens, self._max_rows)._replace(drafted=self._drafts))
        self._make(Size(self._max_rows, self._max_rows, False, not self._single))

    def capture_next(self) -> bool:
        """Capture one more graph that will likely be wanted; False if there is none left."""
        while self._ahead:
            size = self._ahead.pop()
            if size not in self._captured:
                self._make(size)
                return True
        return False

    def _make(self, size: Size) -> None:
        step = self._captured[size] = _Captured(size, self._runs_size(size), self._table)
        step.launch(self._compute)  # of nobody's rows: kernels are compiled and libraries initialised by it
        self._capture(step)

    def _capture(self, step: _Captured[T]) -> None:
        """A step that cannot be captured, mostly for want of memory, is launched kernel by kernel and harms nobody."""
        if self._camera is None:
            return
        try:
            step.capture(self._compute, self._camera)
        except RuntimeError as error:
            log.warning("no more CUDA graphs are captured, since that failed: %s", error)
            self._camera = None
            self._ahead.clear()

    def _fit(self, plan: Plan) -> Size | None:
        num_tokens = plan.num_tokens
        spans, table = plan.slots_R[plan.num_steady :], self._table
        if num_tokens > self._max_tokens or table.scored_S[spans].any() or table.pooled_S[spans].any():
            return None
        drafted = plan.drafted
        if drafted and not self._drafts:
            return None
        if num_tokens == plan.num_rows == plan.num_heads:
            rows = int(self._row_steps[np.searchsorted(self._row_steps, num_tokens)])
            size = Size(rows, rows, False, False)
        else:
            size = self._mixed(num_tokens, plan.num_rows)._replace(drafted=drafted)
        return size._replace(shared=size.mixed or self._shares(size, plan))

    def _shares(self, size: Size, plan: Plan) -> bool:
        members = self._members(plan)
        return members is not None and self._runs_size(size).holds(members)

    def _members(self, plan: Plan) -> shared.Members | None:
        """Who is a member of the plan's runs; found anew only where that may have changed."""
        runs = plan.part(Runs)
        if runs is None:
            return None
        key = (runs.version, plan.version)
        if not plan.plain or self._known_members is None or self._known_members[0] != key:
            self._known_members = key, shared.members(runs, plan)
        return self._known_members[1]

    def _runs_size(self, size: Size) -> shared.Size:
        return shared.Size(max(_LEAST_TILES, size.heads // 4), size.heads, self._tile)

    def _mixed(self, num_tokens: int, num_rows: int) -> Size:
        tokens = int(self._token_steps[np.searchsorted(self._token_steps, num_tokens)])
        return Size(tokens, mixed_rows(num_rows, tokens, self._max_rows), True, True)

    def _likely(self) -> list[Size]:
        """Sizes worth having before they are asked for, in the order in which to take them from the end."""
        decode = [Size(rows, rows, False, False) for rows in self._row_steps.tolist()]
        if self._single:
            return decode[::-1]
        tokens = [tokens for tokens in self._token_steps.tolist() if tokens <= self._max_tokens]
        most_rows = (*_MIXED_ROWS, self._max_rows) if self._prompts else ()
        mixed = [self._mixed(count, rows) for rows in most_rows for count in tokens]
        few = [self._mixed(count, 1)._replace(drafted=True) for count in tokens if count <= _MOST_DRAFTED]
        drafted = few if self._drafts else []
        sharing = [size._replace(shared=True) for size in decode if size.rows > 1]
        return list(dict.fromkeys([*sharing[::-1], *mixed[::-1], *drafted[::-1], *decode[::-1]]))


class _Captured(Generic[T]):
    """One size: its inputs, which stay where they are, and once it is captured its graph and what that leaves."""

    def __init__(self, size: Size, room: shared.Size, table: Table) -> None:
        self.size, self._room, self._table = size, room, table
        self._num_changes = _MIXED_CHANGES if size.mixed else max(size.rows, 16)
        self._frame = Frame.blank(size.rows, size.heads, self._num_changes, table.nobody, table.device)
        nothing = shared.words(None, None, self._room)
        self._words = torch.from_numpy(nothing).to(table.device) if size.shared else None
        self._version: int | None = None  # of the rows that the frame holds, if all of them are steady
        self._runs: tuple[int, ...] | None = None  # the versions of runs and steady rows that it holds
        self.graph: torch.cuda.CUDAGraph | None = None
        self.left: T | None = None

    def tell(self, plan: Plan, members: shared.Members | None) -> bool:
        """Send what has changed since the last step of this size; False, and nothing is sent, if it does not fit."""
        entries, pages = frame.changes(plan.part(Pages), self._table)
        count, words = len(entries), self._frame.words
        if count > self._num_changes:
            return False
        same = plan.plain and self._version == plan.version
        rows = _NOTHING if same else frame.rows(plan, self._table, self.size.rows, pad_heads=True)
        if len(rows) or count:
            vector = np.full(len(rows) + 2 * self._num_changes, frame.NO_ENTRY, dtype=np.int32)
            vector[: len(rows)] = rows
            vector[len(rows) : len(rows) + count] = entries
            vector[len(rows) + self._num_changes :][:count] = pages
            send(vector, words[len(words) - len(vector) :])
        self._version = plan.version if plan.plain else None
        if self._words is not None:
            self._tell_runs(plan, members, self._words)
        return True

    def _tell_runs(self, plan: Plan, members: shared.Members | None, words: torch.Tensor) -> None:
        runs = plan.part(Runs)
        # Where drafts are fed, queries are other tokens each time.
        told = None if runs is None else (runs.version, plan.version, plan.number if self.size.drafted else 0)
        if told == self._runs:
            return
        if members is not None and not self._room.holds(members):
            members = None
        send(shared.words(runs, members, self._room), words)
        self._runs = told

    def launch(self, compute: Compute[T]) -> T:
        runs = None if self._words is None else shared.shared(self._words, self._room)
        return compute(self._frame, self.size.tokens, self.size.limits, runs)

    def capture(self, compute: Compute[T], camera: _Camera) -> None:
        self.graph, self.left = camera.capture(lambda: self.launch(compute))


class _Camera:
    """Where graphs are captured: a stream of their own, and memory that they share, since one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            ones = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
            torch.mm(ones, ones)  # cuBLAS takes its workspace on this stream before any graph could

    def capture(self, launch: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        # Not torch.cuda.graph, which waits for the device and collects garbage each time.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                left = launch()
            finally:
                graph.capture_end()
        return graph, left
