"""Every family with the fused kernels, as on a GPU, beside itself with the plain ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.arch.parts import Linear, Mlp, Tied, walk
from tests import models
from tests.nn import forward

fused: Any = pytest.importorskip("sapwood.kernels.triton.fused")

TOKENS = [3, 77, 12, 150, 9, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels take no tensors of the CPU")
@pytest.mark.parametrize("family", list(models.MODELS))
@pytest.mark.parametrize("num_tokens", [1, len(TOKENS)])
def test_few_tokens(family: str, num_tokens: int, tmp_path: Path) -> None:
    """The interpreter has no product of bfloat16, so what comes in it is computed in float32."""
    calls = []

    def few(x: Tensor, weight: Tensor, bias: Any, norm: Any, residual: Any, activation: Any) -> tuple[Tensor, Tensor]:
        calls.append((bias is not None, norm is not None, residual is not None, activation is not None))
        wide = [None if tensor is None else tensor.float() for tensor in (x, weight, bias, residual)]
        y, total = fused.few.product(*wide[:3], norm, wide[3], activation)
        return y.to(x.dtype), total.to(x.dtype)

    def routed(x: Tensor, norm: Any, logits: Tensor, how: Any) -> Tensor:
        wide = {name: value.float() for name, value in vars(how).items() if isinstance(value, Tensor)}
        y: Tensor = fused.experts.routed(x.float(), norm, logits, dataclasses.replace(how, **wide))
        return y.to(x.dtype)

    path = models.save(family, tmp_path)
    kernels = dataclasses.replace(fused.KERNELS, few=few, routed=routed)
    tokens = TOKENS[:num_tokens]
    model = forward.load(path, dtype=torch.bfloat16, kernels=kernels)
    got = forward.logits(model, tokens)
    expected = forward.logits(forward.load(path, dtype=torch.bfloat16), tokens)
    # What expands latents is multiplied with once, when it is loaded.
    linears = [place.path for place in walk(model.decoder) if isinstance(place.leaf, Linear)]
    products = sum(not path.endswith("mixer.up") for path in linears)
    assert len(calls) == products + isinstance(model.decoder.head, Tied), "every product of a block, and the head"
    gated = {(True, True, True)} if any(isinstance(block.ffn, Mlp) for block in model.decoder.blocks) else set()
    assert {call[1:] for call in calls} >= {(True, True, False), (False, False, False)} | gated
    assert (got - expected).abs().max() < 0.1 * expected.std(), "beyond what rounding explains"
