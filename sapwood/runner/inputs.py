"""Inputs that an encoder reads on the device, before the step whose tokens look at them."""

from __future__ import annotations

import numpy as np

from sapwood.arch.reader import Reader
from sapwood.attention.fixed import Entries
from sapwood.base.media import Media
from sapwood.base.plan import Inputs
from sapwood.nn.model import Model
from sapwood.nn.native import NativeModel


class InputReader:
    """Lets the model's encoder read, and tells the pool who looks where. Inputs of a plan are one batch of at most `most` positions, or
    several; one is never cut."""

    def __init__(self, model: Model | NativeModel, pool: Entries, *, most: int) -> None:
        self._model, self._pool, self._most = model, pool, most

    def take(self, part: Inputs) -> None:
        waiting = list(zip(part.media, part.entries_E.tolist(), strict=True))
        while waiting:
            count, positions = 1, waiting[0][0].length
            while count < len(waiting) and positions + waiting[count][0].length <= self._most:
                positions += waiting[count][0].length
                count += 1
            batch, waiting = waiting[:count], waiting[count:]
            self._model.read([media for media, _ in batch], [entry for _, entry in batch])
        self._pool.turn(part.slots_A, part.entries_A)

    def read_most(self) -> None:
        """Read as much as a batch may have, so that the memory that this takes can be measured. Nobody looks at it."""
        encoder, longest = self._model.decoder.encoder, self._pool.longest
        assert isinstance(encoder, Reader), "made for those"
        if encoder.stem is None:
            name, one = "ids", np.zeros(longest, np.int32)
        else:
            name, one = "features", np.zeros((encoder.stem.bins, longest * encoder.stem.second.stride), np.float32)
        media = Media.of(encoder.kinds[0], {name: one}, longest)
        count = max(1, self._most // longest)
        self._model.read([media] * count, [1] * count)
