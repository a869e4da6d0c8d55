"""Elements that lie row after row in one array, so many of each row: where rows begin, and whose an element is.

Suffix legend: R rows, N elements.
"""

from __future__ import annotations

import numpy as np

from sapwood.base.plan import Ints, Longs


def firsts(counts_R: Ints | Longs) -> Longs:
    """Where the elements of each row begin."""
    found: Longs = np.cumsum(counts_R, dtype=np.int64) - counts_R
    return found


def rows_of(counts_R: Ints | Longs) -> Longs:
    """The row of each element."""
    return np.repeat(np.arange(len(counts_R)), counts_R)


def spread(counts_R: Ints | Longs) -> tuple[Longs, Longs]:
    """The row of each element, and its place in it."""
    rows_N = rows_of(counts_R)
    return rows_N, np.arange(len(rows_N)) - firsts(counts_R)[rows_N]
