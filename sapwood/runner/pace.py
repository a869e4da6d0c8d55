"""What steps cost: timed before there are requests, since drafts are fed while they cost less than they bring."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from sapwood.base.plan import Admit, PageChange, Pages, Part, Plan, Propose
from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.runner.worker import Worker

_LEAST = 4  # steps that are timed, however long that takes
_TIMES = 4  # each is timed at most; the least counts
_GREEDY = SamplingParams(temperature=0)


def time_steps(worker: Worker, trials: Sequence[Trial], *, budget: float) -> list[float]:
    """Seconds of such steps.

    All that a third of the `budget` allows are timed, and again while it lasts: in turns, so that what disturbs the
    machine for a while disturbs all. What happens once only, as that a graph is captured, is not counted. Rows read pages that nobody has yet, one after another, as requests will; slots and
    tables are written anew by the requests that take them.
    """
    found: list[float] = []
    for trial in trials:
        if len(found) >= _LEAST and sum(found) > budget / 3:
            break
        _run(worker, trial, (_pages(worker, trial),))  # and what happens once only
        found.append(_run(worker, trial))
    spent = sum(found)
    for _ in range(_TIMES - 1):
        for place, trial in enumerate(trials[: len(found)]):
            if spent > budget:
                return found
            took = _run(worker, trial)
            spent, found[place] = spent + took, min(found[place], took)
    return found


@torch.inference_mode()
def _run(worker: Worker, trial: Trial, parts: tuple[Part, ...] = ()) -> float:
    """Seconds of one step."""
    longest = worker.config.model.max_model_len
    assert longest is not None, "a resolved configuration"
    worker.table.install([_admit(slot, trial.behind, longest) for slot in range(trial.num_rows)])
    began = perf_counter()
    work = worker.forward(_plan(trial, (*parts, *_ahead(trial))))
    worker.sample(work)
    worker.result(work)
    return worker.agreed(perf_counter() - began)


def _plan(trial: Trial, parts: tuple[Part, ...]) -> Plan:
    num_rows = trial.num_rows
    counts = np.full(num_rows, trial.per_row, np.int32)
    counts[-1] -= num_rows * trial.per_row - trial.tokens
    return Plan(
        num_steady=num_rows,
        version=-1 - hash(trial),
        slots_R=np.arange(num_rows, dtype=np.int32),
        starts_R=np.full(num_rows, trial.behind, np.int32),
        counts_R=counts,
        heads_R=counts,
        owners_R=np.zeros(num_rows, np.int64),
        number=-1,
        parts=parts,
    )


def _ahead(trial: Trial) -> tuple[Part, ...]:
    slots = np.arange(trial.num_rows, dtype=np.int32)
    return (Propose(slots, np.full_like(slots, trial.per_row - 1)),) if trial.ahead else ()


def _pages(worker: Worker, trial: Trial) -> Pages:
    """Pages for the rows, other ones as far as there are."""
    changes = []
    for group, backend in zip(worker.groups, worker.backends, strict=True):
        per_row = -(-(trial.behind + trial.per_row) // group.page_size)
        entries = np.arange(trial.num_rows * per_row, dtype=np.int32)
        others = backend.pools()[0].shape[1] - 1
        changes.append(PageChange(entries // per_row, entries % per_row, 1 + entries % others))
    return Pages(tuple(changes))


def _admit(slot: int, behind: int, longest: int) -> Admit:
    tokens = np.zeros(behind + 1, np.int32)
    return Admit(
        slot, tokens, fed=behind, prompt_len=behind + 1, limit=longest, min_len=1, seed=0, stop_ids=(), params=_GREEDY
    )
