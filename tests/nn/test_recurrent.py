"""Logits of families that keep states against transformers: at once, in pieces of any length, decoded, behind another's prefix,
mixed with others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sapwood.arch import declare
from sapwood.arch.groups import kv_groups
from sapwood.hub.files import open_files
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from tests import models
from tests.nn import forward, steps
from tests.nn.test_breadth import FIRST, LAST, OTHER, check
from tests.recurrent import RECURRENT

STEPS: list[list[steps.Row]] = [
    [(1, 0, FIRST[:16])],  # to a border, where its state is kept
    [(1, 16, FIRST[16:60]), (2, 16, OTHER[16:40])],  # both go on from there
    [(1, 60, FIRST[60:61]), (2, 40, OTHER[40:45]), (3, 0, LAST[:8])],
    [(1, 61, FIRST[61:62]), (2, 45, OTHER[45:46]), (3, 8, LAST[8:])],
    [(1, 62, FIRST[62:]), (2, 46, OTHER[46:])],
]


@pytest.fixture(scope="module", params=list(RECURRENT))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, models.save(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_are_those_of_transformers(saved: tuple[str, Path]) -> None:
    family, path = saved
    ours, theirs = forward.logits(forward.load(path), FIRST), models.logits(family, FIRST)
    assert theirs.std() > 0.1, "logits this flat would hide differences"
    assert (ours - theirs).abs().max() < 1e-4


def test_in_pieces(saved: tuple[str, Path]) -> None:
    family, path = saved
    files = open_files(path, name=path.name)
    decoder = declare(files.config)
    cpu = torch.device("cpu")
    groups = kv_groups(decoder, steps.PAGE_SIZE)
    backends = [forward.KEEPS[type(group.kind)](group, i, cpu, torch.float32) for i, group in enumerate(groups)]
    for backend in backends:
        backend.allocate(steps.NUM_PAGES)
    model = build(decoder, Build(device=cpu, dtype=torch.float32, backends=backends))
    load_weights(model, files)
    check(family, model, backends, STEPS)
