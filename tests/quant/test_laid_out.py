"""Checkpoints of other tools, multiplied by the kernels of a GPU."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from dataclasses import replace
from typing import Any

import pytest
import torch

from sapwood.kernels import PLAIN, RmsNorm
from sapwood.quant.kinds.base import Kind
from sapwood.quant.kinds.scaled import Scaled
from tests.interpreter import interpreter
from tests.quant.test_formats import CHECKPOINTS, load

__all__ = ["interpreter"]
quantised: Any = pytest.importorskip("sapwood.kernels.triton.quantised")
WAYS = [(torch.float16, replace(PLAIN, quantised=quantised.QUANTISED)), (torch.float32, PLAIN)]
NAMES = ["bnb-nf4", "fp8-block", "fp8-static", "gptq-g", "nvfp4", "w4a16-asym", "w8a8"]
"""One of each kind and layout."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
@pytest.mark.parametrize("name", NAMES)
def test_products(name: str) -> None:
    """Of one block, with its norm and its gate, are those of the reference; where inputs are rounded, some that lie between
    two codes become another."""
    model, twin = (load(CHECKPOINTS / name, dtype, kernels) for dtype, kernels in WAYS)
    random = torch.Generator().manual_seed(0)
    for path, gate in (("mixer.qkv", None), ("ffn.gate_up", "silu"), ("ffn.down", None)):
        one, wide = (each.blocks[0].get_submodule(path) for each in (model, twin))
        if not isinstance(one, Kind):
            continue
        assert one.planes is not None
        close = 4e-2 if isinstance(one, Scaled) and one.inputs else 5e-3
        x_TI, residual_TI = torch.randn(2, 3, one.part.inp, generator=random).half()
        norm = RmsNorm(1 + torch.rand(one.part.inp, generator=random), 1e-5)
        got, total = one.normed(x_TI, residual_TI.clone(), norm, gate)
        expected, _ = wide.normed(x_TI.float(), residual_TI.float(), norm, gate)
        assert torch.equal(total, x_TI + residual_TI)
        assert (got - expected).norm() < close * expected.norm()
    x_T2I = torch.randn(3, 2 * one.part.inp, generator=random).half()
    expected = wide.gated(x_T2I.float(), "silu")
    assert (one.gated(x_T2I, "silu") - expected).norm() < 4e-2 * expected.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
def test_before_there_are_weights() -> None:
    """Kernels can be launched, to be compiled for what weights will be."""
    model = load(CHECKPOINTS / "w4a16-asym", torch.float16, WAYS[0][1], weights=False)
    down = model.blocks[0].ffn.down
    assert down(torch.zeros(1, down.part.inp, dtype=torch.float16)).shape == (1, down.part.out)
    real = load(CHECKPOINTS / "w4a16-asym", torch.float16, WAYS[0][1]).blocks[0].ffn.down
    for name, tensor in real.planes.tensors.items():
        made_up = down.planes.tensors[name]
        assert (made_up.shape, made_up.dtype) == (tensor.shape, tensor.dtype), name
