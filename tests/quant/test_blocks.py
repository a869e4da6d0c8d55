"""A GGUF file's blocks stay what they are where kernels can read them."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from sapwood.arch import declare
from sapwood.base.errors import ModelError
from sapwood.hub.files import open_files
from sapwood.kernels import PLAIN
from sapwood.nn.load import forms, load_weights
from sapwood.quant.base import everywhere
from sapwood.quant.blocks import Blocks, BlockWeights
from sapwood.quant.plain import PlainWeights
from tests.interpreter import interpreter
from tests.nn import forward, ggufs

__all__ = ["interpreter"]
quantised: Any = pytest.importorskip("sapwood.kernels.triton.quantised")
TOKENS = [3, 7, 11]


def built(path: Path, dtype: torch.dtype = torch.float16) -> Any:
    files = open_files(path, name="tiny")
    kernels = replace(PLAIN, quantised=quantised.QUANTISED)
    return forward.empty(declare(files.config), dtype=dtype, kernels=kernels, method=everywhere(Blocks(forms(files))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled on this machine")
def test_logits(tmp_path: Path) -> None:
    """Those of the same blocks widened; the file has the dimensions of queries and keys in another order."""
    path = ggufs.write("llama", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
    model = built(path)
    qkv = model.blocks[0].mixer.qkv
    assert isinstance(qkv, BlockWeights)
    qkv(torch.zeros(1, qkv._part.inp, dtype=torch.float16))  # as before weights are there
    load_weights(model, open_files(path, name="tiny"))
    expected = forward.logits(forward.load(path), TOKENS)
    assert (forward.logits(model, TOKENS) - expected).abs().max() < 2e-2 * expected.abs().max()


def test_what_is_plain(tmp_path: Path) -> None:
    """What kernels cannot compute with, and what is in no blocks."""
    path = ggufs.write("llama", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    assert isinstance(built(path, torch.float32).blocks[0].ffn.down, PlainWeights)
    floats = ggufs.write("llama", tmp_path / "floats.gguf", kind=gguf.GGMLQuantizationType.F16)
    assert isinstance(built(floats).blocks[0].ffn.down, PlainWeights)
    with pytest.raises(ModelError, match="stored in other blocks"):
        load_weights(built(path), open_files(floats, name="tiny"))
