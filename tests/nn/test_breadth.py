"""Every family's logits against transformers: in chunks, decoded, behind a prefix of another's, mixed, several tokens at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.arch import declare
from sapwood.arch.groups import kv_groups
from sapwood.attention.cpu import Cpu
from sapwood.attention.native import Native
from sapwood.attention.reference import Reference
from sapwood.attention.select import choose
from sapwood.base.kv import KVGroup
from sapwood.hub.files import open_files
from sapwood.kernels import PLAIN, Kernels
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.nn.native import NativeModel
from sapwood.nn.stack import unlisted
from sapwood.quant.base import everywhere
from sapwood.quant.packed import Packed
from tests import models
from tests.breadth import BREADTH, RENAMED
from tests.nn import native, steps

CPU = torch.device("cpu")
FIRST = np.random.default_rng(0).integers(3, 199, size=66).tolist()
OTHER = FIRST[:20] + np.random.default_rng(1).integers(3, 199, size=30).tolist()
LAST = np.random.default_rng(2).integers(3, 199, size=9).tolist()
TABLE = steps.table((2, 1, 1))
STEPS: list[list[steps.Row]] = [
    [(1, 0, FIRST[:33])],
    [(1, 33, FIRST[33:60]), (2, 16, OTHER[16:40])],  # whose first page is there
    [(1, 60, FIRST[60:61]), (2, 40, OTHER[40:45]), (3, 0, LAST[:8])],  # decoded, as drafts are fed, a prompt
    [(1, 61, FIRST[61:62]), (2, 45, OTHER[45:46]), (3, 8, LAST[8:])],
    [(1, 62, FIRST[62:]), (2, 46, OTHER[46:])],
]
MODULES = {"gemma3n", "gemma4", "gemma4-dense", "gemma4-moe", "gemma4-whole", "llama4", "llama4-whole", "ministral3"}
"""Which the CPU's own stack does not compute."""

FUSED = ["gemma2", "cohere", "gpt2", "bloom", "hunyuan", "gpt-oss"]
"""Which together have all parts that kernels of Triton know."""


@pytest.fixture(scope="session", params=[*BREADTH, *RENAMED])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, models.save(request.param, tmp_path_factory.mktemp(request.param))


def modules(path: Path, kind: Any, kernels: Kernels = PLAIN) -> tuple[Any, list[Any]]:
    files = open_files(path, name=path.name)
    decoder = declare(files.config)
    backends = [kind(group, i, CPU, torch.float32) for i, group in enumerate(kv_groups(decoder, steps.PAGE_SIZE))]
    for backend in backends:
        backend.allocate(steps.NUM_PAGES)
    model = build(decoder, Build(device=CPU, dtype=torch.float32, backends=backends, kernels=kernels))
    load_weights(model, files)
    return model, backends


def stack(path: Path) -> tuple[Any, list[Any]]:
    machine = native.machine()
    files = open_files(path, name=path.name)
    decoder = declare(files.config)
    groups = kv_groups(decoder, steps.PAGE_SIZE)
    backends = [Native(group, i, CPU, torch.float32, machine) for i, group in enumerate(groups)]
    for backend in backends:
        backend.allocate(steps.NUM_PAGES)
    model = NativeModel(decoder, backends, machine, everywhere(Packed(machine)))
    load_weights(model, files)
    return model, backends


def check(family: str, model: Any, backends: list[Any], fed: list[list[steps.Row]] = STEPS) -> None:
    got = steps.feed(model, backends, fed, TABLE)
    for slot, tokens, first in ((1, FIRST, 0), (2, OTHER, 16), (3, LAST, 0)):
        if slot in got:
            long = (tokens + FIRST)[
                : len(FIRST)
            ]  # by length some turn otherwise, and one model serves all lengths alike
            theirs = models.logits(family, long)[first : first + len(got[slot])]
            assert theirs.std() > 0.1, "logits this flat would hide differences"
            assert (got[slot] - theirs).abs().max() < 1e-4


def test_modules(saved: tuple[str, Path]) -> None:
    check(saved[0], *modules(saved[1], Reference))


@pytest.mark.parametrize("family", FUSED)
def test_attention_on_cpus(family: str, tmp_path: Path) -> None:
    check(family, *modules(models.save(family, tmp_path), Cpu))


def test_stack(saved: tuple[str, Path]) -> None:
    """Or modules, where the stack has no operations for what is beside the blocks."""
    family, path = saved
    assert (unlisted(declare(models.config(family))) is not None) == (family in MODULES)
    check(family, *(modules(path, _usual) if family in MODULES else stack(path)))


def _usual(group: KVGroup, *others: Any) -> Any:
    """What serves a group where the stack does not."""
    return choose(group, CPU, torch.float32)(group, *others)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels take no tensors of the CPU")
@pytest.mark.parametrize("family", FUSED)
def test_fused_kernels(family: str, tmp_path: Path) -> None:
    """In the interpreter: a prompt, and a token behind it beside another prompt."""
    fused: Any = pytest.importorskip("sapwood.kernels.triton.fused")
    from sapwood.attention.triton import Triton

    fed: list[list[steps.Row]] = [[(1, 0, FIRST[:5])], [(1, 5, FIRST[5:6]), (3, 0, LAST[:2])]]
    check(family, *modules(models.save(family, tmp_path), Triton, fused.KERNELS), fed)
