"""What the device keeps of media: results of the encoder, and where in slots they stand.

Suffix legend: S slots, L tokens of a slot, M rows for results, W numbers of a position, T tokens of the step, R rows of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.arch.sight import Tower
from sapwood.attention.base import Seen
from sapwood.base.abilities import Ability
from sapwood.base.media import Media
from sapwood.base.plan import Carry, Embed, Encode
from sapwood.config.options import Config
from sapwood.config.sight import encoder_rows
from sapwood.device import Device
from sapwood.nn.sight.tower import MOST_AT_ONCE
from sapwood.runner.table import slots_of
from sapwood.runner.transfer import download, upload


class Encoding(Protocol):
    """The module of a tower."""

    def encode(self, media: Sequence[Media]) -> list[Tensor]: ...


class Sight:
    """Results in `vectors_MW`, of which row 0 is nobody's; per slot, of its first `lengths_S` positions, the row that stands at each, 0 for
    none, and by how much its rotary positions are more; `behind_S` is that of all others. On a device with graphs every step looks,
    elsewhere only while some slot has media."""

    def __init__(
        self, encoder: Encoding, decoder: Decoder, config: Config, *, num_slots: int, max_len: int, device: Device
    ) -> None:
        assert isinstance(decoder.encoder, Tower), "made for those"
        place, size = device.place, (num_slots + 1, max_len)
        dtype = getattr(torch, config.model.dtype)
        self._encoder, self._always = encoder, device.can(Ability.GRAPHS)
        assert config.model.max_model_len is not None, "a resolved configuration"
        self._largest = decoder.encoder.example(config.model.max_model_len)
        rows = encoder_rows(
            config,
            largest=self._largest.length,
            width=decoder.encoder.width,
            itemsize=dtype.itemsize,
        )
        self.vectors_MW = torch.zeros(rows + 1, decoder.encoder.width, dtype=dtype, device=place)
        self._rows_SL = torch.zeros(size, dtype=torch.int32, device=place)
        self._lengths_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=place)
        self._behind_S = torch.zeros(num_slots + 1, dtype=torch.int32, device=place)
        self._levels = decoder.encoder.levels
        self._ends_SL = torch.zeros_like(self._rows_SL, dtype=torch.int64) if decoder.encoder.ahead else None
        self._turns_3SL = None
        if decoder.encoder.turns:
            self._turns_3SL = torch.zeros(3, *size, dtype=torch.int32, device=place)
        self._used = np.zeros(num_slots + 1, np.bool_)
        self._aside: dict[int, Tensor] = {}  # results in the host's memory, by number

    def encode_largest(self) -> None:
        """What needs the most memory: the largest image, alone, and as many of its shape as are encoded together if they are small."""
        count = max(1, min(MOST_AT_ONCE, len(self.vectors_MW) // self._largest.length))
        self._encoder.encode([self._largest] * count)

    def carry(self, part: Carry) -> None:
        """Take results to the host's memory and back; both are ordered with the steps that read and write their rows."""
        for kind, number, rows in zip(part.kinds, part.numbers, part.rows, strict=True):
            if kind == "clear":
                self._aside.clear()
                continue
            if kind == "drop":
                del self._aside[number]
                continue
            (rows_N,) = upload([rows.astype(np.int64)], self.vectors_MW.device)
            if kind == "keep":
                self._aside[number] = download(self.vectors_MW.index_select(0, rows_N))
            else:
                there_NW = self._aside.pop(number).to(self.vectors_MW.device, non_blocking=True)
                self.vectors_MW.index_copy_(0, rows_N, there_NW)

    def encode(self, part: Encode) -> None:
        """Have media encoded, and keep the results."""
        vectors = torch.cat(self._encoder.encode(part.media))
        (rows_N,) = upload([np.concatenate(part.rows).astype(np.int64)], self.vectors_MW.device)
        self.vectors_MW.index_copy_(0, rows_N, vectors)

    def embed(self, part: Embed) -> None:
        """Take in where results stand."""
        for seat in part.seats:
            self._used[seat.slot] = seat.length > 0
            self._lengths_S[seat.slot] = seat.length
            self._behind_S[seat.slot] = seat.behind
            if seat.length:
                self._rows_SL[seat.slot, : seat.length] = 0
                if self._ends_SL is not None:
                    self._ends_SL[seat.slot, : seat.length] = 0
            if self._turns_3SL is not None and seat.length:
                turned = self._turns_3SL[:, seat.slot, : seat.length]
                if seat.turns_3P is None:
                    turned.zero_()
                else:
                    turned.copy_(upload([seat.turns_3P], turned.device)[0])
        for stretch in part.stretches:
            (rows_N,) = upload([stretch.tokens], self._rows_SL.device)
            end = stretch.start + len(rows_N)
            self._rows_SL[stretch.slot, stretch.start : end] = rows_N
            if self._ends_SL is not None:  # spans are fed to their ends
                self._ends_SL[stretch.slot, stretch.start : end] = end

    def of(self, slots_R: Tensor, offsets_R1: Tensor, positions_T: Tensor) -> Seen | None:
        """What stands among the tokens of a step; may be captured."""
        if not self._always and not self._used.any():
            return None
        slots_T = slots_of(slots_R, offsets_R1, len(positions_T))
        within_T = positions_T < self._lengths_S[slots_T]
        rows_T = torch.where(within_T, self._rows_SL[slots_T, positions_T], 0).long()
        ends_T = None
        if self._ends_SL is not None:
            ends_T = torch.where(within_T, self._ends_SL[slots_T, positions_T], 0)
        if self._turns_3SL is None:
            return Seen(rows_T, self.vectors_MW, None, self._levels, ends_T)
        more_3T = torch.where(within_T, self._turns_3SL[:, slots_T, positions_T], self._behind_S[slots_T])
        return Seen(rows_T, self.vectors_MW, positions_T + more_3T, self._levels, ends_T)


def sight_of(
    decoder: Network, config: Config, encoder: Encoding | None, *, num_slots: int, max_len: int, device: Device
) -> Sight | None:
    """That of a model with a tower."""
    if encoder is None or not isinstance(decoder, Decoder) or not isinstance(decoder.encoder, Tower):
        return None
    return Sight(encoder, decoder, config, num_slots=num_slots, max_len=max_len, device=device)
