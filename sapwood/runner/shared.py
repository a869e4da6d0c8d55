"""Runs of shared pages as attention reads them: cut into tiles of few members, in one int32 vector.

    [ lows_I | highs_I | firsts_I | sizes_I | slots_I | tokens_M | privates_Q | members_QL ]

A member is a query: a token of a steady row. These come first in a step, so the host knows which tokens they are.

Suffix legend: U runs, I tiles, M memberships, Q queries, L = RUN_LEVELS.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sapwood.attention.base import Shared
from sapwood.base.plan import RUN_LEVELS, Ints, Rows, Runs
from sapwood.base.ragged import firsts, spread

_NONE = -1


class Size(NamedTuple):
    """Room for so many tiles, of `tile` members at most, and queries, each with all the memberships that it may have."""

    tiles: int
    queries: int
    tile: int

    def lengths(self) -> tuple[int, ...]:
        return (*[self.tiles] * 5, self.queries * RUN_LEVELS, self.queries, self.queries * RUN_LEVELS)

    def holds(self, members: Members) -> bool:
        return num_tiles(members, self.tile) <= self.tiles


class Members(NamedTuple):
    """The tokens of a step that are members, run after run, and how many each run has."""

    tokens_M: Ints
    sizes_U: Ints


def members(runs: Runs, rows: Rows) -> Members:
    """Who is a member of the runs in a step with these rows."""
    steady, counts = rows.steady, rows.counts_R[: rows.num_steady]
    row_of = np.zeros(int(steady.max()) + 1, dtype=np.int32)
    row_of[steady] = np.arange(len(steady), dtype=np.int32)
    mine = row_of[runs.slots_M]
    sizes_U = np.diff(runs.offsets_U1)
    if int(counts.sum()) == len(counts):
        return Members(mine, sizes_U)
    of_M, within_M = spread(counts[mine])
    tokens_M = firsts(counts)[mine][of_M] + within_M
    sizes_U = np.add.reduceat(counts[mine], runs.offsets_U1[:-1])
    return Members(tokens_M.astype(np.int32), sizes_U.astype(np.int32))


def num_tiles(members: Members, tile: int) -> int:
    """Tiles of at most `tile` members that the runs make."""
    return int((-(-members.sizes_U // tile)).sum())


def words(runs: Runs | None, members: Members | None, size: Size) -> Ints:
    """The vector; no runs are padding alone."""
    vector = np.zeros(sum(size.lengths()), dtype=np.int32)
    lows_I, highs_I, firsts_I, sizes_I, slots_I, tokens_M, privates_Q, members_QL = np.split(
        vector, np.cumsum(size.lengths())[:-1]
    )
    members_QL[:] = _NONE
    if runs is None or members is None:
        return vector
    sizes_U, tokens = members.sizes_U, members.tokens_M
    tiles_U = -(-sizes_U // size.tile)
    runs_I, index_I = spread(tiles_U)  # of each tile, and its place in its run
    used, offsets_U = len(runs_I), firsts(sizes_U)
    lows_I[:used], highs_I[:used] = runs.lows_U[runs_I], runs.highs_U[runs_I]
    firsts_I[:used] = offsets_U[runs_I] + index_I * size.tile
    sizes_I[:used] = np.minimum(size.tile, (offsets_U + sizes_U)[runs_I] - firsts_I[:used])
    slots_I[:used] = runs.slots_M[runs.offsets_U1[:-1]][runs_I]

    tokens_M[: len(tokens)] = tokens
    np.maximum.at(privates_Q, tokens, np.repeat(runs.highs_U, sizes_U))
    # The memberships of a query side by side: sorted by query, numbered from its first on.
    order = np.argsort(tokens, kind="stable")
    ordered = tokens[order]
    level = np.arange(len(tokens)) - np.searchsorted(ordered, ordered)
    members_QL.reshape(size.queries, RUN_LEVELS)[ordered, level] = order
    return vector


def shared(vector: Tensor, size: Size) -> Shared:
    """Views of the vector on the device."""
    lows_I, highs_I, firsts_I, sizes_I, slots_I, tokens_M, privates_Q, members = vector.split(size.lengths())
    members_QL = members.view(size.queries, RUN_LEVELS)
    return Shared(lows_I, highs_I, firsts_I, sizes_I, slots_I, tokens_M, privates_Q, members_QL, size.tile)
