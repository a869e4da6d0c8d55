"""What a request asks of sampling: as one packed record that a table keeps per slot, and as a set of needs.

Suffix legend: N rows, K int32 words of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.base.sampling import SamplingParams

RECORD = np.dtype(
    [
        ("seed", np.int64),
        ("prompt_len", np.int32),
        ("min_len", np.int32),
        ("top_k", np.int32),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("first_mark", np.int32),
    ],
    align=True,
)
RECORD_WORDS = RECORD.itemsize // 4
WORDS = {name: offset // 4 for name, (_, offset, *_) in (RECORD.fields or {}).items()}
"""The first int32 word of each column of a record: by these the kernels read it."""

_KINDS = {"i8": (torch.int64, "q"), "i4": (torch.int32, "i"), "f4": (torch.float32, "f")}
_COLUMNS = {name: (*_KINDS[kind.str[1:]], offset) for name, (kind, offset, *_) in (RECORD.fields or {}).items()}


class Need(IntFlag):
    """The steps that a request cannot do without; none at all is plain greedy."""

    BIAS = 1
    PENALTY = 2
    MIN_LEN = 4
    RANDOM = 8
    TOP_K = 16
    TOP_P = 32
    MIN_P = 64
    LOGPROBS = 128
    MASK = 256
    MARKS = 512


def needs(params: SamplingParams, *, stop_ids: tuple[int, ...], min_len: int, prompt_len: int) -> int:
    """The needs of a request, as the sum of its flags."""
    random = not params.greedy and params.top_k != 1
    wanted = (
        (Need.BIAS, bool(params.logit_bias)),
        (Need.PENALTY, params.penalised),
        # With a grammar the mask sees to it, as with a choice of tokens: an end that comes too soon is better than no token.
        (Need.MIN_LEN, bool(stop_ids) and min_len > prompt_len and params.grammar is None and not params.selective),
        (Need.RANDOM, random),
        (Need.TOP_K, random and params.top_k > 1),
        (Need.TOP_P, random and params.top_p < 1.0),
        (Need.MIN_P, random and params.min_p > 0.0),
        (Need.LOGPROBS, params.logprobs is not None),
        (Need.MASK, params.restricted),
        (Need.MARKS, params.timestamps is not None),
    )
    return sum(need for need, is_wanted in wanted if is_wanted)


def records(settings: Sequence[tuple[SamplingParams, int, int, int]]) -> NDArray[Any]:
    """RECORDs of params, seed, min_len and prompt_len. A seed may be any integer; its low 64 bits count. The temperature
    of greedy params is 0."""
    return np.array(
        [
            (
                (seed + 2**63) % 2**64 - 2**63,
                prompt_len,
                min_len,
                max(params.top_k, 0),
                0.0 if params.greedy else params.temperature,
                params.top_p,
                params.min_p,
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
                0 if params.timestamps is None else params.timestamps.first,
            )
            for params, seed, min_len, prompt_len in settings
        ],
        dtype=RECORD,
    )


def reader(*names: str) -> Callable[[bytes], tuple[Any, ...]]:
    """What reads these columns, named in the order of the record, from the bytes of one: numpy takes as long as a token."""
    layout, end = "=", 0
    for name in names:
        _, code, offset = _COLUMNS[name]
        layout += f"{offset - end}x{code}"
        end = offset + struct.calcsize(code)
    return struct.Struct(f"{layout}{RECORD.itemsize - end}x").unpack


class Settings:
    """Records on the device, read by column: `settings["top_p"]` is float32 [N]."""

    def __init__(self, words_NK: Tensor) -> None:
        self.words_NK = words_NK

    def __getitem__(self, name: str) -> Tensor:
        dtype, _, offset = _COLUMNS[name]
        return self.words_NK.view(dtype)[:, offset // dtype.itemsize]

    def pick(self, rows: Tensor | None) -> Settings:
        """Those of some rows; None means all."""
        return self if rows is None else Settings(self.words_NK.index_select(0, rows))
