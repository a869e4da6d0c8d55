"""Which rank has which experts, so that all have about as much to do: by what experts were chosen for before.

The algorithm is the one that DeepSeek has published for its expert parallelism (EPLB, 2025): experts that many tokens want get replicas, until all places
are taken; and replicas are packed into ranks, the heaviest first into the lightest rank that has room. Where ranks are on several nodes and experts in groups that are
chosen together, groups are packed into nodes first, and the same is done within each node, so that a token's experts are on few nodes.

Suffix legend: X experts, P places of all ranks.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placing:
    """The expert at each place, `experts_P`; rank r has the places from r * P / ranks on. `replicas_X` are the places of each expert, among which its tokens
    are shared evenly."""

    experts_P: Longs
    num_ranks: int

    @property
    def replicas_X(self) -> Longs:
        return np.bincount(self.experts_P)

    def loads(self, tokens_X: Floats | Longs) -> Floats:
        """What each rank has to do, where experts are wanted by so many tokens."""
        each_X = np.asarray(tokens_X, np.float64) / np.maximum(self.replicas_X, 1)
        found: Floats = each_X[self.experts_P].reshape(self.num_ranks, -1).sum(1)
        return found

    def balance(self, tokens_X: Floats | Longs) -> float:
        """The mean of ranks' loads by the largest: 1 where all have the same."""
        return balance(self.loads(tokens_X))


def balance(loads: Floats | Longs) -> float:
    """The mean of loads by the largest: 1 where all are the same, and where there are none."""
    most = float(np.max(loads, initial=0))
    return float(np.mean(loads)) / most if most else 1.0


def in_order(num_experts: int, num_ranks: int) -> Placing:
    """Each expert once, by number."""
    return Placing(np.arange(num_experts), num_ranks)


def place(
    tokens_X: Floats | Longs, *, num_places: int, num_ranks: int, num_groups: int = 1, num_nodes: int = 1
) -> Placing:
    """Where experts are to be that are wanted by so many tokens, `num_places` in all, at least one each.

    With several nodes the groups of experts are shared evenly by them, if they can be; else nodes mean nothing.
    Raises ValueError for numbers that do not divide.
    """
    weights_X = np.asarray(tokens_X, np.float64)
    if num_places % num_ranks or num_ranks % num_nodes or len(weights_X) % num_groups:
        raise ValueError(
            f"{num_places} places, {num_ranks} ranks, {num_nodes} nodes and {num_groups} groups do not divide"
        )
    if num_places < len(weights_X):
        raise ValueError(f"{len(weights_X)} experts do not fit {num_places} places")
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    groups = weights_X.reshape(num_groups, -1).sum(1)
    size = len(weights_X) // num_groups
    found = []
    for mine in pack(groups, num_nodes):
        experts = np.concatenate([np.arange(group * size, (group + 1) * size) for group in mine])
        places = replicate(weights_X[experts], num_places // num_nodes)
        counts = np.bincount(places, minlength=len(experts))
        bins = pack(weights_X[experts][places] / counts[places], num_ranks // num_nodes)
        found += [experts[places[one]] for one in bins]
    return Placing(np.concatenate(found), num_ranks)


def pack(weights: Floats, num_bins: int) -> list[list[int]]:
    """The items of each bin, as many in all of them: the heaviest item first, into the lightest bin that has room."""
    each = len(weights) // num_bins
    assert each * num_bins == len(weights), "as many items in each"
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    open_ = [(0.0, one) for one in range(num_bins)]
    for item in np.argsort(-weights, kind="stable").tolist():
        load, lightest = heapq.heappop(open_)
        bins[lightest].append(item)
        if len(bins[lightest]) < each:
            heapq.heappush(open_, (load + float(weights[item]), lightest))
    return bins


def replicate(weights_X: Floats, num_places: int) -> Longs:
    """The expert at each place: all once, then one after another that of which each replica has the most to do."""
    experts = list(range(len(weights_X)))
    counts = [1] * len(weights_X)
    heaviest = [(-float(weight), expert) for expert, weight in enumerate(weights_X)]
    heapq.heapify(heaviest)
    for _ in range(num_places - len(weights_X)):
        _, expert = heapq.heappop(heaviest)
        counts[expert] += 1
        experts.append(expert)
        heapq.heappush(heaviest, (-float(weights_X[expert]) / counts[expert], expert))
    return np.array(experts, np.int64)
