"""Formats whose tools run on GPUs only: checkpoints of another tool, with their layouts as the formats' own documents have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.nn import forward
from tests.quant.test_formats import CHECKPOINTS, differ, load

Rename = Callable[[str, Tensor], tuple[str, Tensor]]
EXCEPTED = ["lm_head"]


def deepseek(end: str, tensor: Tensor) -> tuple[str, Tensor]:
    return {"weight_scale": "weight_scale_inv"}.get(end, end), tensor.float() if end == "weight_scale" else tensor


def same(end: str, tensor: Tensor) -> tuple[str, Tensor]:
    return end, tensor.float() if end.endswith("_scale") else tensor


def scalars(end: str, tensor: Tensor) -> tuple[str, Tensor]:
    return end, tensor.float().reshape(()) if end.endswith("_scale") else tensor


def nvfp4(end: str, tensor: Tensor) -> tuple[str, Tensor]:
    if end == "weight_global_scale":
        return "weight_scale_2", 1 / tensor.float().reshape(())
    return {"weight_packed": "weight", "input_global_scale": "input_scale"}.get(end, end), tensor


CASES: Mapping[str, tuple[str, Rename, dict[str, Any]]] = {
    "fp8 in blocks": (
        "fp8-block",
        deepseek,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    ),
    "fp8": ("fp8-static", scalars, {"quant_method": "fp8", "activation_scheme": "static"}),
    "fbgemm": ("fp8-dynamic", same, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "ModelOpt's FP8": ("fp8-static", scalars, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": EXCEPTED}),
    "ModelOpt's NVFP4": (
        "nvfp4",
        nvfp4,
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head*"]},
    ),
}


def renamed(source: Path, path: Path, rename: Rename, section: Mapping[str, Any]) -> Path:
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module, _, end = name.rpartition(".")
        end, tensor = rename(end, tensor)
        tensors[f"{module}.{end}"] = tensor.contiguous()
    save_file(tensors, path / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": section}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_in_another_format_say_the_same(case: str, tmp_path: Path) -> None:
    name, rename, section = CASES[case]
    source = CHECKPOINTS / name
    tokens = load_file(source / "logits.safetensors")["tokens"].tolist()
    ours = forward.logits(load(renamed(source, tmp_path, rename, section)), tokens)
    assert differ(ours, forward.logits(load(source), tokens)) < 1e-5


def test_an_older_modelopt_has_its_section_in_a_file_of_its_own(tmp_path: Path) -> None:
    source = CHECKPOINTS / "fp8-static"
    path = renamed(source, tmp_path, scalars, {})
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    section = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": EXCEPTED}}
    (path / "hf_quant_config.json").write_text(json.dumps(section))
    tokens = [1, 5, 9, 33, 60]
    assert torch.equal(forward.logits(load(path), tokens), forward.logits(load(source), tokens))
