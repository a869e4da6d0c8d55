"""Models in transformers' modules: their logits are transformers' own, in chunks, decoded, behind a prefix of another's, mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sapwood.arch.foreign import Foreign
from sapwood.arch.groups import kv_groups
from sapwood.attention.cpu import Cpu
from sapwood.attention.reference import Reference
from sapwood.catalogue import Catalogue
from sapwood.config import Config, ModelConfig
from sapwood.engine.declared import declared
from sapwood.foreign.model import ForeignModel
from sapwood.hub.files import open_files
from sapwood.nn.load import load_weights
from sapwood.nn.make import Build
from tests import models
from tests.nn import steps
from tests.nn.test_breadth import CPU, STEPS, check
from tests.unknown import UNKNOWN

WELL_KNOWN = ["llama-tied", "gemma2", "qwen3-moe", "deepseek-v3"]
"""Which have tied weights, windows and caps, experts that a checkpoint holds one by one, and values shorter than keys."""


def declare(path: Path, impl: str = "transformers") -> Foreign:
    found = declared(
        Config(model=ModelConfig(model=str(path), model_impl=impl)), open_files(path, name=path.name), Catalogue()
    )
    assert isinstance(found, Foreign)
    return found


def empty(
    decoder: Foreign, kind: type[Cpu] | type[Reference] = Reference, max_positions: int | None = None
) -> tuple[ForeignModel, list[Cpu | Reference]]:
    backends = [kind(group, i, CPU, torch.float32) for i, group in enumerate(kv_groups(decoder, steps.PAGE_SIZE))]
    for backend in backends:
        backend.allocate(steps.NUM_PAGES)
    how = Build(device=CPU, dtype=torch.float32, backends=backends, max_positions=max_positions)
    return ForeignModel(decoder, how), backends


@pytest.mark.parametrize("family", [*WELL_KNOWN, *UNKNOWN])
def test_logits(family: str, tmp_path: Path) -> None:
    path = models.save(family, tmp_path)
    model, backends = empty(declare(path, "auto" if family in UNKNOWN else "transformers"), Cpu)
    load_weights(model, open_files(path, name=family))
    check(family, model, list(backends), STEPS)
