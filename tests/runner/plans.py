"""Plans by hand: a host that knows slots, lengths and pages, and nothing of scheduling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sapwood.base.plan import (
    Admissions,
    Admit,
    Copies,
    Drafts,
    Known,
    Masked,
    PageChange,
    PageCopy,
    Pages,
    Part,
    Plan,
    Runs,
    Stretch,
)
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
    rows: Sequence[tuple[int, int, int, int]],
    *,
    admits: Sequence[Admit] = (),
    pages: Sequence[Mapping[int, Mapping[int, int]]] = ({},),
    copies: Sequence[Mapping[int, int]] | None = None,
    num_steady: int = 0,
    version: int = 0,
    masked: Sequence[int] = (),
    known: Sequence[Stretch] = (),
    drafts: Sequence[Stretch] = (),
    runs: Runs | None = None,
) -> Plan:
    """A plan of rows (slot, start, count, heads), the steady ones first. The slots `masked` are restricted.

    `pages` has, for each group, slot -> index -> page; `copies`, for each group, source -> target.
    """
    slots, starts, counts, heads = (ints(column) for column in zip(*rows, strict=True))
    changes = [[(s, i, p) for s, table in group.items() for i, p in table.items()] for group in pages]
    heads_M = np.flatnonzero(np.isin(np.repeat(slots, heads), list(masked)))
    parts: list[Part] = [
        Admissions(tuple(admits)),
        Pages(tuple(PageChange(*(ints([change[i] for change in group]) for i in range(3))) for group in changes)),
        Copies(tuple(PageCopy(ints(list(g)), ints(list(g.values()))) for g in copies or [{} for _ in pages])),
        *([Known(tuple(known))] if known else []),
        *([Drafts(tuple(drafts))] if drafts else []),
        *([Masked(heads_M)] if len(heads_M) else []),
        *([runs] if runs is not None else []),
    ]
    return Plan(
        num_steady=num_steady,
        version=version,
        slots_R=slots,
        starts_R=starts,
        counts_R=counts,
        heads_R=heads,
        owners_R=np.zeros(len(rows), dtype=np.int64),
        number=0,
        parts=tuple(parts if admits else parts[1:]),
        late=bool(len(heads_M)),
    )
