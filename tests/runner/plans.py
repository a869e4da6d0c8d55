"""Plans by hand: a host that knows slots, lengths and pages, and nothing of scheduling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sapwood.base.plan import Admit, Known, PageChange, PageCopy, Plan
from sapwood.base.sampling import SamplingParams


def ints(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int32)


def admit(
    slot: int,
    tokens: Sequence[int],
    *,
    fed: int = 0,
    prompt_len: int | None = None,
    limit: int = 64,
    min_len: int = 0,
    seed: int = 0,
    stop_ids: tuple[int, ...] = (),
    params: SamplingParams | None = None,
) -> Admit:
    return Admit(
        slot=slot,
        tokens=ints(tokens),
        fed=fed,
        prompt_len=len(tokens) if prompt_len is None else prompt_len,
        limit=limit,
        min_len=min_len,
        seed=seed,
        stop_ids=stop_ids,
        params=params or SamplingParams(temperature=0.0),
    )


def make_plan(
    rows: Sequence[tuple[int, int, int, bool]],
    *,
    admits: Sequence[Admit] = (),
    pages: Sequence[Mapping[int, Mapping[int, int]]] = ({},),
    copies: Sequence[Mapping[int, int]] | None = None,
    steady: Any = None,
    masked: Sequence[int] = (),
    known: Sequence[Known] = (),
) -> Plan:
    """A plan of rows (slot, start, count, yields), the steady ones first. The slots `masked` are restricted.

    `pages` has, for each group, slot -> index -> page; `copies`, for each group, source -> target.
    """
    slots, starts, counts, yields = zip(*rows, strict=True)
    changes = [[(s, i, p) for s, table in group.items() for i, p in table.items()] for group in pages]
    return Plan(
        number=0,
        steady=ints([]) if steady is None else steady,
        slots_R=ints(slots),
        starts_R=ints(starts),
        counts_R=ints(counts),
        yields_R=np.array(yields, dtype=np.bool_),
        owners_R=np.zeros(len(rows), dtype=np.int64),
        admits=tuple(admits),
        pages=tuple(PageChange(*(ints([change[i] for change in group]) for i in range(3))) for group in changes),
        copies=tuple(PageCopy(ints(list(g)), ints(list(g.values()))) for g in copies or [{} for _ in pages]),
        masked=np.array([row for row, slot in enumerate(slots) if slot in masked and yields[row]]) if masked else None,
        known=tuple(known),
    )
