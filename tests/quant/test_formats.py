"""Checkpoints that other tools have made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sapwood.arch import declare
from sapwood.hub.files import open_files
from sapwood.kernels import PLAIN, Kernels
from sapwood.nn.load import load_weights
from sapwood.quant import methods
from sapwood.quant.base import everywhere
from sapwood.quant.kinds.scaled import Scaled
from sapwood.quant.methods import METHODS
from sapwood.quant.plain import Plain
from tests.nn import forward

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CLOSE = 1e-4
LESS_CLOSE = {  # their tools multiply in half precision
    "nvfp4": 0.01,
    "nvfp4a16": 0.01,
    "gptq-act-order": 0.001,
    "gptq-asym": 0.001,
}
AS_TOOL = 0.01
LESS_AS_TOOL = {"w8a8": 0.05}  # it rounds inputs to 255 steps where ours are 254


def load(path: Path, dtype: torch.dtype = torch.float32, kernels: Kernels = PLAIN, *, weights: bool = True) -> Any:
    files = open_files(path, name=path.name)
    decoder = declare(files.config, methods=METHODS)
    method = methods.of(decoder.quantization, everywhere(Plain()))
    model = forward.empty(decoder, dtype=dtype, kernels=kernels, method=method)
    if weights:
        load_weights(model, files)
    return model


def differ(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def unrounded(model: Any) -> Any:
    """The same with inputs as they are."""
    for module in model.modules():
        if isinstance(module, Scaled):
            module.form = dataclasses.replace(module.form, inputs=None)
    return model


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKPOINTS.glob("*/")))
def test_logits_are_those_of_the_dequantised_twin_and_of_the_tool(name: str) -> None:
    model, expected = load(CHECKPOINTS / name), load_file(CHECKPOINTS / name / "logits.safetensors")
    tokens = expected["tokens"].tolist()
    if "tool" in expected:
        assert differ(forward.logits(model, tokens), expected["tool"]) < LESS_AS_TOOL.get(name, AS_TOOL)
    assert differ(forward.logits(unrounded(model), tokens), expected["twin"]) < LESS_CLOSE.get(name, CLOSE)
