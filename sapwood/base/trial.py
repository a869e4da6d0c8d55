"""A step that is timed before there are requests."""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """`tokens` in steady rows of `per_row`, the last of what is left, each behind `behind` positions; `ahead`: the device drafts all of
    each row's tokens but the first."""

    tokens: int
    per_row: int
    behind: int = 0
    ahead: bool = False

    @property
    def num_rows(self) -> int:
        return -(-self.tokens // self.per_row)
