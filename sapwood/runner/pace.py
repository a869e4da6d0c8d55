"""What steps cost by their tokens: timed before there are requests, since drafts are fed while they cost less than they bring."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from sapwood.base.plan import Admit, Plan
from sapwood.base.sampling import SamplingParams
from sapwood.runner.worker import Worker

_LEAST = 3  # sizes that are timed, however long that takes
_TIMES = 4  # each size is timed at most; the least counts
_GREEDY = SamplingParams(temperature=0)


def time_steps(worker: Worker, sizes: Sequence[int], *, drafts: int, budget: float) -> list[float]:
    """Seconds of steps of so many tokens, in rows of one with up to `drafts` drafts.

    All sizes that a third of the `budget` allows are timed, and again while it lasts: in turns, so that what disturbs the
    machine for a while disturbs all. The rows' pages are page 0; slots and tables are written anew by the requests that
    take them.
    """
    config = worker.config
    longest, most_rows = config.model.max_model_len, config.scheduler.max_num_seqs
    assert longest is not None and most_rows is not None
    per_row = max(1, min(drafts + 1, longest // (_TIMES + 2)))
    found: list[float] = []
    began = perf_counter()
    for size in sizes:
        if size > per_row * most_rows or (len(found) >= _LEAST and perf_counter() - began > budget / 3):
            break
        _run(worker, size, per_row, longest)  # what happens once only
        found.append(_run(worker, size, per_row, longest))
    for _ in range(_TIMES - 1):
        for place, size in enumerate(sizes[: len(found)]):
            if perf_counter() - began > budget:
                return found
            found[place] = min(found[place], _run(worker, size, per_row, longest))
    return found


@torch.inference_mode()
def _run(worker: Worker, size: int, per_row: int, longest: int) -> float:
    """Seconds of one step of rows that have just begun."""
    worker.table.install([_admit(slot, longest) for slot in range(-(-size // per_row))])
    began = perf_counter()
    work = worker.forward(_plan(size, per_row))
    worker.sample(work)
    worker.result(work)
    return perf_counter() - began


def _plan(size: int, per_row: int) -> Plan:
    """Steady rows of `per_row` tokens, the last of what is left."""
    num_rows = -(-size // per_row)
    counts = np.full(num_rows, per_row, np.int32)
    counts[-1] -= num_rows * per_row - size
    slots = np.arange(num_rows, dtype=np.int32)
    return Plan(
        num_steady=num_rows,
        version=-size,
        slots_R=slots,
        starts_R=np.zeros_like(slots),
        counts_R=counts,
        heads_R=counts,
        owners_R=np.zeros(num_rows, np.int64),
        number=-1,
    )


def _admit(slot: int, longest: int) -> Admit:
    tokens = np.zeros(1, np.int32)
    return Admit(slot, tokens, fed=0, prompt_len=1, limit=longest, min_len=1, seed=0, stop_ids=(), params=_GREEDY)
