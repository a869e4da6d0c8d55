"""Experts that are quantised: checkpoints in the layouts of several formats, beside what their weights stand for."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidia0") else "1")

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapwood.arch import declare
from sapwood.base.errors import ModelError
from sapwood.hub.files import open_files
from sapwood.kernels import PLAIN
from sapwood.kernels.planes import E2M1, StackedPlanes
from sapwood.nn.experts import CodedStack
from sapwood.nn.load import load_weights
from sapwood.nn.stack import unlisted
from sapwood.quant.choice import choice_of
from sapwood.quant.kinds.base import Kind
from sapwood.quant.methods import METHODS
from sapwood.quant.repacked import unpackable
from sapwood.quant.rounding import e2m1_codes
from tests import models
from tests.interpreter import interpreter
from tests.nn import forward, native
from tests.quant.test_formats import differ, load, unrounded
from tests.quant.test_rounding import FAR, empty

__all__ = ["interpreter"]

TOKENS = np.random.default_rng(4).integers(3, 199, size=12).tolist()
FP8 = torch.float8_e4m3fn
Tensors = dict[str, Tensor]
Store = Callable[[Tensor, str], tuple[Tensors, Tensor]]
"""From a weight, and the name of what its module is within, to the module's tensors and to what those stand for."""


def packed(codes: Tensor, order: tuple[int, ...], *, dim: int) -> Tensor:
    """int32 words of eight 4-bit codes along an axis, the code `order[i]` in the i-th place from below."""
    groups = codes.movedim(dim, -1).unflatten(-1, (-1, 8)).long()
    words = sum(groups[..., order[place]] << (4 * place) for place in range(8))
    assert isinstance(words, Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).movedim(-1, dim)


STRAIGHT, INTERLEAVED = tuple(range(8)), (0, 2, 4, 6, 1, 3, 5, 7)


def groups_of(weight: Tensor, zero: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [O, I], scale [O, G], zero [O, G]) of groups of 32."""
    grouped = weight.unflatten(1, (-1, 32))
    least, most = grouped.amin(2), grouped.amax(2)
    if not zero:
        least, most = -grouped.abs().amax(2) * 8 / 7, grouped.abs().amax(2)
    scale = ((most - least) / 15).half().float()
    middle = (-least / scale).round().clamp(1, 15) if zero else torch.full_like(scale, 8)
    codes = ((grouped / scale[..., None]).round() + middle[..., None]).clamp(0, 15)
    return codes.flatten(1).int(), scale, middle.int()


def value(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((codes.unflatten(1, (-1, 32)) - zero[..., None]) * scale[..., None]).flatten(1)


def compressed(weight: Tensor, _: str) -> tuple[Tensors, Tensor]:
    codes, scale, zero = groups_of(weight, zero=False)
    words = packed(codes, STRAIGHT, dim=1)
    stored = {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    return stored, value(codes, scale, zero)


def awq(weight: Tensor, _: str) -> tuple[Tensors, Tensor]:
    codes, scale, zero = groups_of(weight, zero=True)
    stored = {"qweight": packed(codes.T, INTERLEAVED, dim=1), "scales": scale.T.half()}
    return stored | {"qzeros": packed(zero.T, INTERLEAVED, dim=1)}, value(codes, scale, zero)


def gptq(weight: Tensor, within: str) -> tuple[Tensors, Tensor]:
    """With an order of the inputs, which modules share that have the same."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(sum(map(ord, within))))
    codes, scale, zero = groups_of(weight[:, order], zero=False)
    back = torch.argsort(order)
    stored = {"qweight": packed(codes[:, back].T, STRAIGHT, dim=0), "scales": scale.T.half()}
    stored |= {"qzeros": packed((zero - 1).T, STRAIGHT, dim=1), "g_idx": (back // 32).int()}
    return stored, value(codes, scale, zero)[:, back]


def rows(weight: Tensor, _: str) -> tuple[Tensors, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(FP8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def blocks(weight: Tensor, _: str) -> tuple[Tensors, Tensor]:
    """Of 128 rows: inputs here are fewer."""
    scale = torch.stack([part.abs().amax() / 448 for part in weight.split(128)])[:, None]
    of_rows = scale.repeat_interleave(128, dim=0)[: len(weight)]
    codes = (weight / of_rows).to(FP8)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * of_rows


GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
CHANNEL, TOKEN = ({"num_bits": 8, "type": "float", "strategy": s} for s in ("channel", "token"))


def scheme(packing: str, weights: Any, inputs: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    ignored = ["lm_head", "re:.*mlp.gate$", "re:.*block_sparse_moe.gate$"]
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"g": group}, "ignore": ignored}


CASES: Mapping[str, tuple[str, Store, dict[str, Any]]] = {
    "fp8 in blocks": (
        "deepseek-v3",
        blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    ),
    "fp8": ("mixtral", rows, scheme("float-quantized", CHANNEL, TOKEN | {"dynamic": True})),
    "packed": ("qwen3-moe", compressed, scheme("pack-quantized", GROUP)),
    "awq": (
        "qwen3-moe",
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": ["mlp.gate"]},
    ),
    "gptq": ("qwen3-moe", gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
}


def write(tensors: Tensors, config: dict[str, Any], path: Path) -> Path:
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def both(case: str, folder: Path) -> tuple[Path, Path]:
    """The checkpoint, and its dequantised twin."""
    if case == "mxfp4":
        return mxfp4(folder)
    family, store, section = CASES[case]
    source = models.save(family, folder / "plain")
    ours, twin = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module, _, end = name.rpartition(".")
        linear = tensor.dim() == 2 and module.rpartition(".")[2] not in ("lm_head", "embed_tokens", "gate")
        if linear and end == "weight":
            stored, twin[name] = store(tensor, module.rpartition(".")[0])
            ours |= {f"{module}.{one}": value for one, value in stored.items()}
        else:
            ours[name] = twin[name] = tensor
    config = json.loads((source / "config.json").read_text())
    quantised = write(ours, config | {"quantization_config": section}, folder / "quantised")
    return quantised, write(twin, config, folder / "twin")


def mxfp4(folder: Path) -> tuple[Path, Path]:
    """gpt-oss: stacks [X, O, G, 16] of codes of which gates and ups take turns, and exponents."""
    source = models.save("gpt-oss", folder / "plain")
    tensors = load_file(source / "model.safetensors")
    ours, twin = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            ours[name] = twin[name] = tensor
            continue
        grouped = tensor.mT.unflatten(-1, (-1, 32))
        exponent = torch.log2(grouped.abs().amax(-1) / 6).ceil()
        codes = e2m1_codes(grouped / torch.exp2(exponent)[..., None])
        ours[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
        ours[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
        twin[name] = (torch.tensor(E2M1)[codes.int()] * torch.exp2(exponent)[..., None]).flatten(-2).mT
    config = json.loads((source / "config.json").read_text())
    section = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    quantised = write(ours, config | {"quantization_config": section}, folder / "quantised")
    return quantised, write(twin, config, folder / "twin")


ALL = [*CASES, "mxfp4"]
MODULES = ("gptq",)
"""Which the CPU's own kernels do not compute: experts whose inputs have orders of their own."""


@pytest.mark.parametrize("case", ALL)
def test_logits_are_those_of_the_dequantised_twin(case: str, tmp_path: Path) -> None:
    """By modules, of which nothing is widened but what is chosen; and by the CPU's own kernels, prompt and decoded."""
    ours, twin = both(case, tmp_path)
    model = unrounded(load(ours))
    stacks = [module for module in model.modules() if isinstance(module, CodedStack)]
    assert stacks and not any(stack._together is not None for stack in stacks)
    expected = forward.logits(forward.load(twin), TOKENS)
    assert expected.std() > 0.1, "logits this flat would hide differences"
    assert differ(forward.logits(model, TOKENS), expected) < 1e-4
    refused = unlisted(model.decoder) or unpackable(model.method, model.decoder)
    assert (refused is not None) == (case in MODULES)
    if case not in MODULES:
        stack = native.load(ours, native.machine())
        assert differ(native.logits(stack, TOKENS, [1, 9]), expected) < 2e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels take no tensors of the CPU")
@pytest.mark.parametrize("case", ["fp8", "awq", "gptq", "mxfp4"])
def test_experts_by_the_kernels_of_a_gpu(case: str, tmp_path: Path) -> None:
    """A step of few tokens and one of more, of weights that are decoded in registers."""
    fused: Any = pytest.importorskip("sapwood.kernels.triton.fused")
    kernels = replace(PLAIN, quantised=fused.KERNELS.quantised, routed=fused.KERNELS.routed)
    ours, twin = both(case, tmp_path)
    one = load(ours, torch.float16, kernels).blocks[0].ffn
    wide = forward.load(twin).blocks[0].ffn
    assert isinstance(one.gate_up.weight, StackedPlanes) and isinstance(one.down.weight, StackedPlanes)
    random = torch.Generator().manual_seed(0)
    for number in (1, 5):
        x_TE = torch.randn(number, 64, generator=random).half()
        got, expected = one(x_TE, None, None)[0], wide(x_TE.float(), None, None)[0]
        assert (got - expected).norm() < 1e-2 * expected.norm()


def test_before_there_are_weights_there_is_room_like_theirs(tmp_path: Path) -> None:
    fused: Any = pytest.importorskip("sapwood.kernels.triton.fused")
    kernels = replace(PLAIN, quantised=fused.KERNELS.quantised, routed=fused.KERNELS.routed)
    ours, _ = both("awq", tmp_path)
    made_up, real = (
        load(ours, torch.float16, kernels, weights=weights).blocks[0].ffn.down.weight for weights in (False, True)
    )
    for name, tensor in real.planes.tensors.items():
        assert (made_up.planes.tensors[name].shape, made_up.planes.tensors[name].dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("scheme", ["fp8", "int8", "int4", "nvfp4"])
def test_experts_are_rounded_while_they_load(scheme: str, tmp_path: Path) -> None:
    family = "gpt-oss"
    files = open_files(models.save(family, tmp_path), name=family)
    model = empty(files.config, scheme)
    load_weights(model, files)
    ours, theirs = forward.logits(model, TOKENS), models.logits(family, TOKENS)
    assert 1e-3 < differ(ours, theirs) < FAR[scheme]
    stack = model.blocks[0].ffn.gate_up
    assert isinstance(stack, CodedStack) and all(isinstance(kind, Kind) for kind in stack.experts)


def test_experts_of_a_layer_are_quantised_alike(tmp_path: Path) -> None:
    section = scheme("pack-quantized", GROUP)
    section["ignore"] = [*section["ignore"], "re:.*experts.3.up_proj"]
    decoder = declare(models.config("qwen3-moe") | {"quantization_config": section}, methods=METHODS)
    with pytest.raises(ModelError, match=r"experts\.3\.up_proj otherwise than the experts beside"):
        choice_of(decoder, None)
