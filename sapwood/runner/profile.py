"""The step that takes the most memory, so that it can be measured before the KV cache takes the rest."""

from __future__ import annotations

import numpy as np

from sapwood.base.plan import Admissions, Admit, Plan
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Embed, Task

_EVERYTHING = SamplingParams(
    top_k=64, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1, logprobs=8, prompt_logprobs=8
)


def heaviest_plan(max_rows: int, max_tokens: int, max_len: int, *, generates: bool = True) -> Plan:
    """As many rows and tokens as a step may have, each row sampled with everything, or pooled. All pages are page 0."""
    num_rows = min(max_rows, max_tokens)
    counts = np.ones(num_rows, dtype=np.int32)
    for row in range(num_rows):
        counts[row] += min(max_tokens - int(counts.sum()), max_len - 2)
    slots = np.arange(num_rows, dtype=np.int32)
    what = (_EVERYTHING, GENERATE) if generates else (SamplingParams(temperature=0), Embed("mean"))
    admits = tuple(_admit(slot, count, max_len, *what) for slot, count in enumerate(counts.tolist()))
    return Plan(
        num_steady=0,
        version=0,
        slots_R=slots,
        starts_R=np.zeros_like(slots),
        counts_R=counts,
        heads_R=np.ones_like(slots),
        owners_R=np.zeros(num_rows, dtype=np.int64),
        number=0,
        parts=(Admissions(admits),),
    )


def _admit(slot: int, length: int, max_len: int, params: SamplingParams, task: Task) -> Admit:
    return Admit(
        slot=slot,
        tokens=np.zeros(length, dtype=np.int32),
        fed=0,
        prompt_len=length,
        limit=max_len,
        min_len=length,
        seed=0,
        stop_ids=(),
        params=params,
        task=task,
    )
