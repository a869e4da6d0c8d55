from __future__ import annotations

import os

import pytest

from sapwood.base.errors import ConfigError
from sapwood.runner.device import probe


def test_the_cpu_as_it_is() -> None:
    facts = probe("cpu")
    assert facts.kind == "cpu"
    assert facts.capability is None
    assert 1 <= facts.num_cores <= (os.cpu_count() or 1)
    assert 0 < facts.free_memory <= facts.total_memory
    assert facts.name
    assert "float32" in facts.dtypes


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_the_users_error(device: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        probe(device)


@pytest.mark.gpu
def test_a_gpu_as_it_is() -> None:
    facts = probe("auto")
    assert facts.kind == "cuda"
    assert facts.capability is not None
    assert 0 < facts.free_memory <= facts.total_memory
