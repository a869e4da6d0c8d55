"""Features of requests and of engines with a model that hears: what changes no token of others changes none of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from tests import hearing
from tests.contracts.test_pairs_sight import said
from tests.hearing import recording
from tests.http.test_hears import write_all

PROMPTS: Sequence[Sequence[int | np.ndarray]] = (
    [5, 6, 7, 5, 6, recording(0.43), 5, 6, 7, 5, 6],
    [9, recording(0.43), 9, recording(0.3, 1), 9, 9, 9],
    [5, 6, 7, 8, 5, 6, 7, 8, 5, 6],
)
WITH_SOUND = (
    ("overlap", "chunked prompts", "drafts", "speculation", "standing still", "a store of KV"),
    ("sleep and waking", "preemption", "two ranks"),
)


def test_features_of_requests_and_engines_with_models_that_hear(tmp_path: Path) -> None:
    made = hearing.Prepared("qwen2-audio", hearing.save("qwen2-audio", tmp_path))
    write_all(tmp_path)
    alone = said(tmp_path, made, (), PROMPTS)
    assert len({tuple(one) for one in alone[0].values()}) > 2
    little = {"encoder_cache_memory": 26 * 64 * 4, "encoder_cache_host_memory": 1 << 20}
    for names, memory in zip(WITH_SOUND, ({}, little), strict=True):
        assert said(tmp_path, made, names, PROMPTS, **memory) == alone, names
    with pytest.raises(ConfigError, match="encoder"):
        said(tmp_path, made, ("two stages",), PROMPTS)
