"""What requests may want to know of each position that the model has computed for them, beside the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

Insight = Literal["hidden_states", "logits", "routed_experts"]
"""Hidden states after the last norm, the logits that follow from them, and which experts each layer that has some has chosen, best first."""

INSIGHTS: tuple[Insight, ...] = get_args(Insight)

Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Columns = Mapping[Insight, NDArray[Any]]
"""By kind: [positions, numbers of each], in the precision that is asked for, or int32 of experts."""

MOST_BYTES = 1 << 28
"""Of one output: all of it lies in the memory of engine and front until the output is complete."""


def dtype_of(insight: Insight, precision: Precision) -> np.dtype[Any]:
    return np.dtype(np.int32 if insight == "routed_experts" else precision)


class Told(msgspec.Struct, frozen=True, array_like=True):
    """An array [positions, width] in a message: of float32, float16 or int32, as NumPy calls them."""

    width: int
    dtype: str
    data: bytes

    @staticmethod
    def of(array: NDArray[Any]) -> Told:
        return Told(array.shape[1], array.dtype.name, array.tobytes())

    @property
    def array(self) -> NDArray[Any]:
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(-1, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.data) // (np.dtype(self.dtype).itemsize * self.width), self.width


def join(pieces: Sequence[Mapping[Insight, Told]]) -> dict[Insight, Told]:
    """What several messages told of one output, one behind the other."""
    found: dict[Insight, list[Told]] = {}
    for piece in pieces:
        for name, told in piece.items():
            found.setdefault(name, []).append(told)
    return {
        name: several[0]
        if len(several) == 1
        else Told(several[0].width, several[0].dtype, b"".join(told.data for told in several))
        for name, several in found.items()
    }
