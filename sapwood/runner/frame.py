"""What the host tells the device of one step: one int32 vector, so one transfer, or none where nothing has changed.

    [ slots_R | told_R | counts_R | heads_R | places_R | kinds_R | entries_C | pages_C ]

Told is where a row starts, or -1 where only the device knows. A row's heads, the last `heads` of its positions, stand
side by side from its place on among the N heads of the step, in the order of the rows. Entries are flat places in the
page tables of all groups, -1 for none. A frame may be larger than its step: padding rows belong to the slot of nobody and
have no tokens.

Suffix legend: R rows, N heads, C changes of page tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sapwood.base.plan import Ints, Pages, Plan
from sapwood.base.ragged import firsts
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload

TOLD_BY_DEVICE = -1
NO_ENTRY = -1
REJECTED = -2
"""Stands for a draw behind a draft that was wrong."""


class Kind(IntEnum):
    """How a row's next tokens are chosen."""

    NONE = 0  # it has no heads
    DRAWN = 1  # by `sampling.fast`, at once
    SPECIAL = 2  # by the general steps, later


X = TypeVar("X")


class Columns(NamedTuple, Generic[X]):
    """What a frame says of each row, in this order: of tensors, or of their memory as numpy arrays."""

    slots_R: X
    told_R: X
    counts_R: X
    heads_R: X
    places_R: X
    kinds_R: X


_COLUMNS = len(Columns._fields)


@dataclass(frozen=True, eq=False)
class Frame:
    """Views of the vector on the device. `num_heads` is how many heads the step computes, padding included; `drafted`:
    a row may have several."""

    words: Tensor
    num_rows: int
    num_heads: int
    drafted: bool

    def columns(self) -> Columns[Tensor]:
        return Columns(*self.words[: _COLUMNS * self.num_rows].view(_COLUMNS, self.num_rows).unbind(0))

    def changes(self) -> tuple[Tensor, Tensor]:
        """entries_C, pages_C."""
        entries_C, pages_C = self.words[_COLUMNS * self.num_rows :].view(2, -1).unbind(0)
        return entries_C, pages_C

    @staticmethod
    def blank(num_rows: int, num_heads: int, num_changes: int, nobody: int, device: torch.device) -> Frame:
        """A frame of padding alone, whose vector stays where it is; drafted if there are more heads than rows."""
        words = np.concatenate([_padding(num_rows, nobody, pad_heads=True), np.full(2 * num_changes, NO_ENTRY)])
        return Frame(torch.from_numpy(words.astype(np.int32)).to(device), num_rows, num_heads, num_heads > num_rows)


def exact(plan: Plan, table: Table) -> Frame:
    """The frame of a plan and nothing more, on its way to the device."""
    entries, pages = changes(plan.part(Pages), table)
    words = np.concatenate([rows(plan, table, plan.num_rows, pad_heads=False), entries, pages])
    return Frame(upload([words], table.device)[0], plan.num_rows, plan.num_heads, plan.drafted)


def rows(plan: Plan, table: Table, num_rows: int, *, pad_heads: bool) -> Ints:
    """The first part of a frame of `num_rows` rows. With `pad_heads` there is a head for every row at least, and all of
    the first `num_rows` belong to some row."""
    words = _padding(num_rows, table.nobody, pad_heads=pad_heads)
    row = _columns(words)
    used, yields = plan.num_rows, plan.heads_R > 0
    row.slots_R[:used] = plan.slots_R
    row.told_R[: plan.num_steady] = TOLD_BY_DEVICE
    row.told_R[plan.num_steady : used] = plan.starts_R[plan.num_steady :]
    row.counts_R[:used] = plan.counts_R
    row.heads_R[:used] = plan.heads_R
    kinds = np.where(table.special_S[plan.slots_R], Kind.SPECIAL, Kind.DRAWN)
    row.kinds_R[:used] = np.where(yields, kinds, Kind.NONE)
    if not plan.plain:
        first = firsts(plan.heads_R)
        row.places_R[:used] = np.where(yields, first, NO_ENTRY)
        if pad_heads:
            # Rows without heads share out the places that are left, so that every head is written to.
            quiet = np.concatenate([np.flatnonzero(~yields), np.arange(used, num_rows)])
            left = np.arange(plan.num_heads, num_rows)[: len(quiet)]
            row.places_R[quiet] = NO_ENTRY
            row.places_R[quiet[: len(left)]] = left
    elif not pad_heads:
        row.places_R[:used] = np.arange(used)
    return words


def changes(pages: Pages | None, table: Table) -> tuple[Ints, Ints]:
    """Flat places in the page tables of all groups, and what comes to stand there."""
    if pages is None:
        return _NOTHING, _NOTHING
    _, num_slots, num_pages = table.tables_GSP.shape
    entries = [
        (group * num_slots + change.slots_A) * num_pages + change.indices_A
        for group, change in enumerate(pages.changes)
    ]
    return np.concatenate(entries), np.concatenate([change.pages_A for change in pages.changes])


_NOTHING: Ints = np.zeros(0, np.int32)


def _columns(words: Ints) -> Columns[Ints]:
    return Columns(*words.reshape(_COLUMNS, -1))


def _padding(num_rows: int, nobody: int, *, pad_heads: bool) -> Ints:
    words = np.zeros(_COLUMNS * num_rows, dtype=np.int32)
    row = _columns(words)
    row.slots_R[:] = nobody
    row.places_R[:] = np.arange(num_rows) if pad_heads else NO_ENTRY
    return words
