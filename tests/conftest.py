"""What all tests share: where they run, and the real models."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import TINY, write_bytes_model


@functools.cache
def has_cuda() -> bool:
    """Asks the driver, not torch, so that host tests stay free of it."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


if not has_cuda():
    # Triton reads this when it is imported, and any test module may be the first to do so.
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of pytest-xdist are the parallelism
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _keep_to_own_cores() -> None:
    """Each worker of pytest-xdist, with the processes that it starts, has cores of its own. Engines take a thread for each
    core that they may use, and threads that wait for one another wait long where others want the same cores."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if count <= len(cores):
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count])


_keep_to_own_cores()


LONGEST = """
    sim/test_scheduler sim/test_drafts sampling/test_fast nn/test_native attention/test_backends bench/test_cli
    contracts/test_pairs nn/test_kernels attention/test_shared
""".split()
"""Files that take the longest. They come first, so that at the end no worker is busy with one while others have nothing to do."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    turns = {tests / f"{name}.py": turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))
    if "slow" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if has_cuda():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A command that ran in this process leaves its logs where they were, not where no later test can see them."""
    yield
    log = sys.modules.get("sapwood.observe.log")
    if log is not None:
        log.leave_logging()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, in the model cache after the first use."""
    return _real("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2, likewise."""
    return _real("minilm")


@pytest.fixture(scope="session")
def whisper_tiny() -> Path:
    """The directory of Whisper tiny.en, likewise."""
    return _real("whisper-tiny.en")


def _real(name: str) -> Path:
    if importlib.util.find_spec("sapwood.hub") is None:
        pytest.skip("this build has no model hub")
    from sapwood.base.errors import SapwoodError
    from sapwood.hub.files import find

    try:
        return find(name).path
    except (SapwoodError, OSError) as error:
        pytest.skip(f"{name} cannot be had: {error}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama over bytes, with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("tiny")
    write_bytes_model(path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(path)
    return path
