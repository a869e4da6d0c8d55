"""Checkpoints that other tools have made, on the CPU's own kernels: against their dequantised twins."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sapwood.nn.native import NativeModel
from sapwood.quant.packed import PACKINGS, Form
from tests.nn import native
from tests.quant.test_formats import CHECKPOINTS, LESS_CLOSE, differ

CLOSE = 2e-3  # what activations of 12 bits leave


def plain_linears(model: NativeModel) -> set[str]:
    """The products within blocks whose weights are float32."""
    widened = PACKINGS[Form.F32]
    return {
        path
        for path, leaf in model._packed.items()
        if path.startswith("blocks") and any(weights.packing == widened for weights, _ in leaf.matrices)
    }


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKPOINTS.glob("*/")))
def test_logits_are_those_of_the_dequantised_twin(name: str) -> None:
    model, expected = (
        native.load(CHECKPOINTS / name, native.machine()),
        load_file(CHECKPOINTS / name / "logits.safetensors"),
    )
    tokens = expected["tokens"].tolist()
    found = native.logits(model, tokens)
    assert differ(found, expected["twin"]) < max(CLOSE, LESS_CLOSE.get(name, 0.0))
    one_by_one = native.logits(model, tokens, cuts=range(1, len(tokens)))
    assert torch.equal(one_by_one, found)
    assert not plain_linears(model)
