"""What all tests share: where they run, and the one real model."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

import pytest


@functools.cache
def has_cuda() -> bool:
    """Asks the driver, not torch, so that host tests stay free of it."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


if not has_cuda():
    # Triton reads this when it is imported, and any test module may be the first to do so.
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of pytest-xdist are the parallelism
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if has_cuda():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, in the model cache after the first use."""
    if importlib.util.find_spec("sapwood.hub") is None:
        pytest.skip("this build has no model hub")
    from sapwood.base.errors import SapwoodError
    from sapwood.hub.files import find

    try:
        return find("smollm2-135m").path
    except (SapwoodError, OSError) as error:
        pytest.skip(f"smollm2-135m cannot be had: {error}")
