"""What the device knows of every slot.

Suffix legend: S slots, L tokens of a slot, G KV groups, P pages of a slot, K words of a settings record, A admits or
page changes, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from sapwood.attention.base import rows_of
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.base.plan import Admit, Drafts, Gaps, Ints, Known, Stretch
from sapwood.base.task import Generate
from sapwood.device import abilities_of
from sapwood.runner.transfer import upload
from sapwood.sampling.fast import FAST
from sapwood.sampling.settings import RECORD_WORDS, needs, records

_SLACK = 8  # columns that a step still in flight may write after a row has reached its limit


class Table:
    """Device truth per slot, and what the host keeps of it.

    Device: `tokens_SL` (int32) every known token; `fed_S` (int32) how many of them are in the KV cache once the steps
    given so far are done; `tables_GSP` (int32) pages, 0 where there is none; `settings_SK` packed sampling settings.
    `seconds_S` (int32) where a second text begins, 0 without one. Tokens and fed are written by steps too, the others by admits only. On the device there is one slot more, `nobody`,
    which padding may read and write. Where tokens may stand elsewhere than they are turned (`gaps`), `gaps_SL` (int32) is by how much that is more.
    Host: which sampling steps a slot's request needs (`needs_S`), whether some of them are not among those that are
    drawn at once (`special_S`), whether its prompt is to be scored (`scored_S`), whether it wants a vector (`pooled_S`) or to
    know more of its positions (`curious_S`), and the rest of its admission (`admit`).
    """

    def __init__(
        self, *, num_slots: int, max_len: int, groups: Sequence[KVGroup], device: torch.device, gaps: bool = False
    ) -> None:
        length = max_len + _SLACK
        num_pages = max(-(-length // group.page_size) for group in groups)
        self.device = device
        self.nobody = num_slots
        self.tokens_SL = torch.zeros(num_slots + 1, length, dtype=torch.int32, device=device)
        self.fed_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self.tables_GSP = torch.zeros(len(groups), num_slots + 1, num_pages, dtype=torch.int32, device=device)
        self.settings_SK = torch.zeros(num_slots + 1, RECORD_WORDS, dtype=torch.int32, device=device)
        self.seconds_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self.needs_S = np.zeros(num_slots, dtype=np.int32)
        self.special_S = np.zeros(num_slots, dtype=np.bool_)
        self.scored_S = np.zeros(num_slots, dtype=np.bool_)
        self.pooled_S = np.zeros(num_slots, dtype=np.bool_)
        self.gaps_SL = torch.zeros_like(self.tokens_SL) if gaps else None
        self._gapped: set[int] = set()  # slots that have some
        self._always = Ability.GRAPHS in abilities_of(device)  # a graph does not ask
        self.curious_S = np.zeros(num_slots, dtype=np.bool_)
        self._admits: list[Admit | None] = [None] * num_slots

    def shadow(self) -> Table:
        """The same slots as another model sees them that runs ahead in them: what it has fed is counted apart, and all its
        tokens are drawn at once."""
        made = copy(self)
        made.fed_S = torch.zeros_like(self.fed_S)
        made.special_S, made.scored_S = np.zeros_like(self.special_S), np.zeros_like(self.scored_S)
        made.pooled_S, made.curious_S = np.zeros_like(self.pooled_S), np.zeros_like(self.curious_S)
        return made

    def admit(self, slot: int) -> Admit:
        """The request that holds a slot."""
        admit = self._admits[slot]
        assert admit is not None
        return admit

    def install(self, admits: Sequence[Admit]) -> None:
        """Write what requests that take slots bring, with one transfer."""
        for admit in admits:
            self._admits[admit.slot] = admit
            wanted = needs(admit.params, stop_ids=admit.stop_ids, min_len=admit.min_len, prompt_len=admit.prompt_len)
            self.needs_S[admit.slot] = wanted
            self.special_S[admit.slot] = bool(wanted & ~FAST)
            self.scored_S[admit.slot] = admit.params.prompt_logprobs is not None
            self.pooled_S[admit.slot] = not isinstance(admit.task, Generate)
            self.curious_S[admit.slot] = bool(admit.params.insights)
        settings = records([(admit.params, admit.seed, admit.min_len, admit.prompt_len) for admit in admits])
        lengths = [len(admit.tokens) for admit in admits]
        slots = np.array([admit.slot for admit in admits], dtype=np.int32)
        slots_A, fed_A, seconds_A, settings_AK, rows_N, columns_N, tokens_N = upload(
            [
                slots,
                np.array([admit.fed for admit in admits], dtype=np.int32),
                np.array([admit.task.second for admit in admits], dtype=np.int32),
                settings.view(np.int32).reshape(len(admits), RECORD_WORDS),
                np.repeat(slots, lengths),
                np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
                np.concatenate([admit.tokens for admit in admits]),
            ],
            self.device,
        )
        self.fed_S[slots_A], self.seconds_S[slots_A] = fed_A, seconds_A
        self.settings_SK[slots_A] = settings_AK
        self.tokens_SL[rows_N, columns_N] = tokens_N

    def write(self, known: Known) -> None:
        """Write tokens that the host knows and no step has drawn, with one transfer."""
        rows_N, columns_N, tokens_N = upload(_cells(known.stretches), self.device)
        self.tokens_SL[rows_N, columns_N] = tokens_N

    def spread(self, gaps: Gaps) -> None:
        """Note by which positions tokens are turned that stand elsewhere."""
        assert self.gaps_SL is not None, "told only where there may be some"
        for one in gaps.stretches:
            if len(one.tokens):
                (gaps_N,) = upload([one.tokens], self.device)
                self.gaps_SL[one.slot, : len(gaps_N)] = gaps_N
                self.gaps_SL[one.slot, len(gaps_N) :] = gaps_N[-1]
                self._gapped.add(one.slot)
            elif one.slot in self._gapped:
                self.gaps_SL[one.slot] = 0
                self._gapped.remove(one.slot)

    def turned(self, slots_R: Tensor, offsets_R1: Tensor, positions_T: Tensor) -> Tensor | None:
        """By which positions a step's tokens are turned, None for their own; may be captured."""
        if self.gaps_SL is None or not (self._gapped or self._always):
            return None
        return positions_T + self.gaps_SL[slots_of(slots_R, offsets_R1, len(positions_T)), positions_T]

    def turn(self, entries: Ints, pages: Ints) -> None:
        """Write entries of the page tables, by their flat places, before a step does."""
        if len(entries):
            entries_C, pages_C = upload([entries, pages], self.device)
            self.tables_GSP.view(-1)[entries_C] = pages_C

    def draft(self, drafts: Drafts) -> None:
        """The same, but only behind the last token of each slot: steps may have got further than the host knew."""
        rows_N, columns_N, tokens_N = upload(_cells(drafts.stretches), self.device)
        free_N = columns_N > self.fed_S[rows_N]
        self.tokens_SL[rows_N, columns_N] = torch.where(free_N, tokens_N, self.tokens_SL[rows_N, columns_N])


def slots_of(slots_R: Tensor, offsets_R1: Tensor, num_tokens: int) -> Tensor:
    """The slot (int64) of each of a step's tokens, that of its last row for padding."""
    return slots_R[rows_of(offsets_R1, num_tokens).clamp_(max=len(slots_R) - 1)].long()


def _cells(stretches: Sequence[Stretch]) -> list[Ints]:
    """Slot, position and token of each."""
    slots = [np.full(len(one.tokens), one.slot, dtype=np.int32) for one in stretches]
    columns = [np.arange(one.start, one.start + len(one.tokens), dtype=np.int32) for one in stretches]
    return [np.concatenate(part) for part in (slots, columns, [one.tokens for one in stretches])]
