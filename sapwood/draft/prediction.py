"""Predicted outputs: the caller says what the answer will be like, and a cursor follows it there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.base.cursor import Cursor
from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.draft.drafter import Drafter


class Predictions(Drafter):
    """Proposes what requests that bring a prediction predict."""

    name = "prediction"

    def __init__(self) -> None:
        self._cursors: dict[int, Cursor] = {}

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int] | Ints:
        if not request.params.prediction:
            return ()
        cursor = self._cursors.get(request.id)
        if cursor is None:
            cursor = self._cursors[request.id] = Cursor(np.array(request.params.prediction, np.int32))
        return cursor.ahead(tokens[request.prompt_len :], count)

    def leave(self, request: Request) -> None:
        self._cursors.pop(request.id, None)
