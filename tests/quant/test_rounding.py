"""Plain weights that are rounded while they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.arch import declare
from sapwood.hub.files import open_files
from sapwood.kernels.planes import E2M1
from sapwood.nn.load import dummy_weights, load_weights
from sapwood.quant.base import Weights, everywhere
from sapwood.quant.kinds.base import Kind
from sapwood.quant.plain import Plain, PlainWeights
from sapwood.quant.rounding import e2m1_codes, rounding
from tests import models
from tests.nn import forward

TOKENS = np.random.default_rng(4).integers(3, 199, size=20).tolist()
FAR = {"fp8": 0.2, "int8": 0.05, "int4": 0.4, "nvfp4": 0.5}


def empty(config: dict[str, Any], scheme: Any) -> Any:
    return forward.empty(declare(config), method=rounding(scheme, everywhere(Plain())))


@pytest.mark.parametrize("scheme", FAR)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_linears_of_the_blocks_are_rounded_and_nothing_else(family: str, scheme: str, tmp_path: Path) -> None:
    """64 and 96 inputs fill groups of 16 and 32."""
    files = open_files(models.save(family, tmp_path), name=family)
    model = empty(files.config, scheme)
    load_weights(model, files)
    kinds = {path: module for path, module in model.named_modules() if isinstance(module, Weights)}
    assert {path for path, module in kinds.items() if not isinstance(module, Kind)} == {"head"}
    assert (
        1e-3
        < (forward.logits(model, TOKENS) - models.logits(family, TOKENS)).norm() / models.logits(family, TOKENS).norm()
        < FAR[scheme]
    )
    assert not any(module._read for module in kinds.values() if isinstance(module, Kind)), "nothing is kept twice"
    plain = forward.load(files)
    for path, module in kinds.items():
        if isinstance(module, Kind):
            weight = plain.get_submodule(path).weight
            assert (module.dequantised() - weight).norm() / weight.norm() < {"int8": 0.01, "fp8": 0.04}.get(
                scheme, 0.12
            )


def test_inputs_that_fill_no_groups_stay_plain(tmp_path: Path) -> None:
    config = models.config("llama") | {"intermediate_size": 88}
    model = empty(config, "int4")
    assert isinstance(model.blocks[0].ffn.down, PlainWeights)
    assert isinstance(model.blocks[0].ffn.gate_up, Kind)


@pytest.mark.parametrize("scheme", FAR)
def test_made_up_weights_are_as_large_as_plain_ones(scheme: str) -> None:
    model = empty(models.config("llama"), scheme)
    dummy_weights(model, seed=0)
    spread = model.blocks[0].mixer.qkv.dequantised().std()
    assert 0.01 < spread < 0.04


def test_the_nearest_values_of_e2m1() -> None:
    table = torch.tensor(E2M1)
    values = torch.linspace(-7, 7, 999)
    near = (values[:, None] - table).abs().amin(dim=1)
    assert torch.equal((values - table[e2m1_codes(values).int()]).abs(), near)
