"""What the host tells the device of one step: one int32 vector, so one transfer, or none where nothing has changed.

    [ slots_R | told_R | counts_R | places_R | kinds_R | entries_C | pages_C ]

Told is where a row starts, or -1 where only the device knows. A row that yields has a place among the N heads, the
rows whose logits are wanted, in the order of the rows. Entries are flat places in the page tables of all groups, -1
for none. A frame may be larger than its step: padding rows belong to the slot of nobody and have no tokens.

Suffix legend: R rows, N heads, C changes of page tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from sapwood.base.plan import Ints, PageChange, Plan
from sapwood.runner.table import Table
from sapwood.runner.transfer import upload

_COLUMNS = 5
TOLD_BY_DEVICE = -1
NO_ENTRY = -1


class Kind(IntEnum):
    """How a row's next token is chosen."""

    NONE = 0  # it does not yield
    DRAWN = 1  # by `sampling.fast`, at once
    SPECIAL = 2  # by the general steps, later


@dataclass(frozen=True, eq=False)
class Frame:
    """Views of the vector on the device. `num_heads` is how many heads the step computes, padding included."""

    words: Tensor
    num_rows: int
    num_heads: int

    def columns(self) -> tuple[Tensor, ...]:
        """slots_R, told_R, counts_R, places_R, kinds_R, entries_C, pages_C."""
        rows = self.words[: _COLUMNS * self.num_rows].view(_COLUMNS, self.num_rows)
        changes = self.words[_COLUMNS * self.num_rows :].view(2, -1)
        return (*rows.unbind(0), *changes.unbind(0))

    @staticmethod
    def blank(num_rows: int, num_changes: int, nobody: int, device: torch.device) -> Frame:
        """A frame of padding alone, whose vector stays where it is."""
        words = np.concatenate([_padding(num_rows, nobody, pad_heads=True), np.full(2 * num_changes, NO_ENTRY)])
        return Frame(torch.from_numpy(words.astype(np.int32)).to(device), num_rows, num_rows)


def exact(plan: Plan, table: Table) -> Frame:
    """The frame of a plan and nothing more, on its way to the device."""
    entries, pages = changes(plan.pages, table)
    words = np.concatenate([rows(plan, table, plan.num_rows, pad_heads=False), entries, pages])
    return Frame(upload([words], table.device)[0], plan.num_rows, int(plan.yields_R.sum()))


def rows(plan: Plan, table: Table, num_rows: int, *, pad_heads: bool) -> Ints:
    """The first part of a frame of `num_rows` rows. With `pad_heads` every row is a head, those that yield first."""
    words = _padding(num_rows, table.nobody, pad_heads=pad_heads)
    slots, told, counts, places, kinds = words.reshape(_COLUMNS, num_rows)
    used = plan.num_rows
    slots[:used] = plan.slots_R
    told[: plan.num_steady] = TOLD_BY_DEVICE
    told[plan.num_steady : used] = plan.starts_R[plan.num_steady :]
    counts[:used] = plan.counts_R
    kinds[:used] = np.where(plan.yields_R, np.where(table.special_S[plan.slots_R], Kind.SPECIAL, Kind.DRAWN), Kind.NONE)
    if not plan.yields_R.all():
        yielding = np.cumsum(plan.yields_R)
        places[:used] = np.where(plan.yields_R, yielding - 1, NO_ENTRY)
        if pad_heads:
            # The others share out the places that are left, so that every head is written to.
            quiet = np.flatnonzero(~plan.yields_R)
            places[quiet] = np.arange(yielding[-1], used)
    elif not pad_heads:
        places[:used] = np.arange(used)
    return words


def changes(pages: Sequence[PageChange], table: Table) -> tuple[Ints, Ints]:
    """Flat places in the page tables of all groups, and what comes to stand there."""
    _, num_slots, num_pages = table.tables_GSP.shape
    entries = [
        (group * num_slots + change.slots_A) * num_pages + change.indices_A
        for group, change in enumerate(pages)
        if len(change.slots_A)
    ]
    if not entries:
        return _NOTHING, _NOTHING
    return np.concatenate(entries), np.concatenate([change.pages_A for change in pages])


_NOTHING: Ints = np.zeros(0, np.int32)


def _padding(num_rows: int, nobody: int, *, pad_heads: bool) -> Ints:
    words = np.zeros((_COLUMNS, num_rows), dtype=np.int32)
    words[0] = nobody
    words[3] = np.arange(num_rows) if pad_heads else NO_ENTRY
    return words.reshape(-1)
