"""Inputs that an encoder reads on the device, before the step whose tokens look at them."""

from __future__ import annotations

from sapwood.attention.fixed import FixedPool
from sapwood.base.plan import Inputs
from sapwood.nn.model import Model


class InputReader:
    """Lets the model's encoder read, and tells the pool who looks where. Inputs of a plan are one batch of at most `most` positions, or
    several; one is never cut."""

    def __init__(self, model: Model, pool: FixedPool, *, most: int) -> None:
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
