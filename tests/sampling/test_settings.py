"""The one layout of settings records, and those who read it."""

from __future__ import annotations

import numpy as np
import torch

from sapwood.base.sampling import SamplingParams, Timestamps
from sapwood.sampling.settings import RECORD, RECORD_WORDS, WORDS, Settings, reader, records

PARAMS = SamplingParams(
    temperature=0.5,
    top_k=7,
    top_p=0.25,
    min_p=0.125,
    repetition_penalty=1.5,
    presence_penalty=-0.75,
    frequency_penalty=0.375,
    timestamps=Timestamps(first=70, text_end=50),
)
WANTED = {
    "seed": -5, "prompt_len": 11, "min_len": 13, "top_k": 7, "temperature": 0.5, "top_p": 0.25, "min_p": 0.125,
    "repetition": 1.5, "presence": -0.75, "frequency": 0.375, "first_mark": 70,
}  # fmt: skip


def test_all_readers_find_every_column() -> None:
    packed = records([(PARAMS, -5, 13, 11)])
    words = packed.view(np.int32).reshape(1, RECORD_WORDS)
    assert tuple(WANTED) == RECORD.names == tuple(WORDS)
    assert reader(*WANTED)(packed.tobytes()) == tuple(WANTED.values())
    for name, value in WANTED.items():
        assert packed[name].item() == value
        assert reader(name)(words[0].tobytes()) == (value,)
        assert Settings(torch.from_numpy(words.copy()))[name].item() == value
        kind = RECORD[name]
        assert words[0, WORDS[name] : WORDS[name] + kind.itemsize // 4].view(kind).item() == value, "as kernels read it"
