"""The heads of a step whose tokens the general steps of sampling choose, and how each of them wants it.

Suffix legend: N such heads, B pairs of head and token id.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapwood.base.plan import Ints, Longs, Plan
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload
from sapwood.sampling.fast import FAST
from sapwood.sampling.sampler import Bias, Recipe, Stops
from sapwood.sampling.settings import Need, Settings


@dataclass(frozen=True, eq=False)
class Yields:
    """Host: the `places` of such heads among all, which of them want logprobs, and each of these how many: alternatives, and tokens that it names.

    Device (int64): the same places. `only_masked`: a mask is all that any of them needs beyond what is drawn at once.
    """

    places: Longs
    logprobs: Longs
    wanted: list[tuple[int, int]]
    places_N: Tensor
    recipe: Recipe
    only_masked: bool


def find_special(plan: Plan, table: Table) -> Yields | None:
    """Depends on which rows there are and not on where they stand, so it holds for as long as they are the same."""
    heads = np.repeat(plan.slots_R, plan.heads_R)
    places = np.flatnonzero(table.special_S[heads])
    if not len(places):
        return None
    slots = heads[places].astype(np.int64)
    needs_N = table.needs_S[slots]
    parts = _parts(needs_N)
    admits = [table.admit(slot) for slot in slots.tolist()] if parts else []
    arrays: dict[Hashable, NDArray[Any]] = {"slots": slots, "places": places}
    arrays |= {need: places for need, places in parts.items() if places is not None}
    if Need.BIAS in parts:
        biases = [admit.params.logit_bias for admit in admits]
        arrays |= _pairs("bias", [list(bias) for bias in biases])
        arrays["values"] = np.array([value for bias in biases for value in bias.values()], dtype=np.float32)
    if Need.MIN_LEN in parts:
        wants = (needs_N & Need.MIN_LEN).astype(bool)
        arrays |= _pairs("stop", [admit.stop_ids if want else () for admit, want in zip(admits, wants, strict=True)])
    logprobs = np.flatnonzero(needs_N & Need.LOGPROBS)
    asking = [admits[place].params for place in logprobs.tolist()]
    wanted = [(params.logprobs or 0, len(params.logprob_token_ids)) for params in asking]
    if most := max((count for _, count in wanted), default=0):
        arrays["named"] = np.array(
            [(*params.logprob_token_ids, *[0] * (most - len(params.logprob_token_ids))) for params in asking]
        )
    on_device = dict(zip(arrays, upload(list(arrays.values()), table.device), strict=True))

    recipe = Recipe(
        slots_N=on_device["slots"],
        settings=Settings(table.settings_SK.index_select(0, on_device["slots"])),
        rows={need: on_device.get(need) for need in parts},
        bias=Bias(on_device["bias_rows"], on_device["bias_ids"], on_device["values"]) if Need.BIAS in parts else None,
        stops=Stops(on_device["stop_rows"], on_device["stop_ids"]) if Need.MIN_LEN in parts else None,
        num_top=max((num for num, _ in wanted), default=0),
        named_NJ=on_device.get("named"),
    )
    return Yields(
        places=places,
        logprobs=logprobs,
        wanted=wanted,
        places_N=on_device["places"],
        recipe=recipe,
        only_masked=parts == {Need.MASK: None},
    )


def _parts(needs_N: Ints) -> dict[Need, Longs | None]:
    """For each need that some row has, the places of those that do; None is all."""
    parts: dict[Need, Longs | None] = {}
    for need in Need(int(np.bitwise_or.reduce(needs_N, initial=0)) & ~FAST):
        places = np.flatnonzero(needs_N & need)
        parts[need] = places if len(places) < len(needs_N) else None
    return parts


def _pairs(name: str, ids: list[Any]) -> dict[Hashable, Longs]:
    """Rows and token ids of one list of ids per row."""
    return {
        f"{name}_rows": np.repeat(np.arange(len(ids)), [len(some) for some in ids]),
        f"{name}_ids": np.array([token for some in ids for token in some], dtype=np.int64),
    }
