"""Runs of shared pages as attention reads them: cut into tiles of few members, in one int32 vector.

    [ lows_I | highs_I | firsts_I | sizes_I | rows_M | privates_R | members_RL ]

Suffix legend: U runs, I tiles, M memberships, R rows, L = RUN_LEVELS.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sapwood.attention.base import Shared
from sapwood.base.plan import RUN_LEVELS, Ints, Runs

_NONE = -1


class Size(NamedTuple):
    """Room for so many tiles, of `tile` members at most, and rows, each with all the memberships that it may have."""

    tiles: int
    rows: int
    tile: int

    def lengths(self) -> tuple[int, ...]:
        return (*[self.tiles] * 4, self.rows * RUN_LEVELS, self.rows, self.rows * RUN_LEVELS)


def num_tiles(runs: Runs, tile: int) -> int:
    """Tiles of at most `tile` members that the runs make."""
    return int((-(-np.diff(runs.offsets_U1) // tile)).sum())


def words(runs: Runs | None, steady: Ints, size: Size) -> Ints:
    """The vector for rows whose first ones are the `steady` slots; no runs are padding alone."""
    vector = np.zeros(sum(size.lengths()), dtype=np.int32)
    lows_I, highs_I, firsts_I, sizes_I, rows_M, privates_R, members_RL = np.split(
        vector, np.cumsum(size.lengths())[:-1]
    )
    members_RL[:] = _NONE
    if runs is None:
        return vector
    members_U = np.diff(runs.offsets_U1)
    tiles_U = -(-members_U // size.tile)
    runs_I = np.repeat(np.arange(len(tiles_U)), tiles_U)
    used = len(runs_I)
    index_I = np.arange(used) - np.repeat(np.cumsum(tiles_U) - tiles_U, tiles_U)  # of the tile in its run
    lows_I[:used], highs_I[:used] = runs.lows_U[runs_I], runs.highs_U[runs_I]
    firsts_I[:used] = runs.offsets_U1[runs_I] + index_I * size.tile
    sizes_I[:used] = np.minimum(size.tile, runs.offsets_U1[runs_I + 1] - firsts_I[:used])

    row_of = np.zeros(int(steady.max()) + 1, dtype=np.int32)
    row_of[steady] = np.arange(len(steady), dtype=np.int32)
    rows = row_of[runs.slots_M]
    rows_M[: len(rows)] = rows
    np.maximum.at(privates_R, rows, np.repeat(runs.highs_U, members_U))
    # The memberships of a row side by side: sorted by row, numbered from the first of that row on.
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    level = np.arange(len(rows)) - np.searchsorted(sorted_rows, sorted_rows)
    members_RL.reshape(size.rows, RUN_LEVELS)[sorted_rows, level] = order
    return vector


def shared(vector: Tensor, size: Size) -> Shared:
    """Views of the vector on the device."""
    lows_I, highs_I, firsts_I, sizes_I, rows_M, privates_R, members = vector.split(size.lengths())
    return Shared(
        lows_I, highs_I, firsts_I, sizes_I, rows_M, privates_R, members.view(size.rows, RUN_LEVELS), size.tile
    )
