"""Checkpoints with a layer that predicts one more token, as their families publish it: random ones, and ones that know the toy language of
`tests.heads`. transformers leaves these layers out, so they are the last layer of a model with one more.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import models
from tests.breadth import BREADTH
from tests.heads import NEXT, SIZES, WORDS
from tests.recurrent import RECURRENT

_HIDDEN = SIZES["hidden_size"]
_LAYERS = 2
_KINDS = ["linear_attention", "full_attention", "full_attention"]
_MORE: Mapping[str, tuple[tuple[str, str, Mapping[str, Any]], Mapping[str, Any]]] = MappingProxyType({
    "deepseek-v3": (models.MODELS["deepseek-v3"], {}),
    "glm4-moe": (BREADTH["glm4-moe"], {}),
    "qwen3-next": (RECURRENT["qwen3-next"], {"layer_types": _KINDS, "shared_expert_intermediate_size": 64}),
    "qwen3.5": (RECURRENT["qwen3.5"], {"layer_types": _KINDS}),
    "qwen3.5-moe": (RECURRENT["qwen3.5-moe"], {"layer_types": _KINDS}),
})  # fmt: skip
FAMILIES = tuple(_MORE)
_BY_LAYER = ("layer_types", "mlp_layer_types")


class Made(NamedTuple):
    """A model of transformers without the layer, the layer, norms of a token, of the feature before it and of what the layer yields, and what
    joins the first two."""

    model: Any
    layer: Any
    norms: tuple[Any, Any, Any]
    join: Any


@functools.cache
def make(family: str) -> Made:
    (config, kind, fields), more = _MORE[family]
    model = models.build(config, kind, {**fields, **more, "num_hidden_layers": _LAYERS + 1}, seed=len(family))
    norms = tuple(type(model.model.norm)(_HIDDEN, eps=model.config.rms_norm_eps) for _ in range(3))
    join = torch.nn.Linear(2 * _HIDDEN, _HIDDEN, bias=False)
    with torch.no_grad():
        for norm in norms:
            norm.weight.add_(torch.randn(_HIDDEN) * 0.2)
        join.weight.normal_(std=0.1)
    model.config.num_hidden_layers = _LAYERS  # it computes no more than these
    for name in _BY_LAYER:
        if hasattr(model.config, name):
            setattr(model.config, name, getattr(model.config, name)[:_LAYERS])
    return Made(model, model.model.layers[_LAYERS], norms, join)


def save(family: str, path: Path, made: Made | None = None) -> Path:
    """Write the random one, or another of the family."""
    return _write(family, path, _tensors(family, path, made))


def toy(family: str, path: Path) -> Path:
    """Write one that speaks the toy language. Its layer looks at nothing but the hidden state before, which is 8 times a token's vector."""
    tensors = _tensors(family, path)
    ones = torch.zeros if family.startswith("qwen") else torch.ones  # the one has norms of 1 + weight
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "shared_expert_gate.weight")):
            tensor.zero_()
        elif name.endswith("norm.weight") or ".pre_fc_norm_" in name:
            tensor.copy_(ones(tensor.shape))
    block = "mtp.layers.0." if family.startswith("qwen") else f"model.layers.{_LAYERS}."
    join = "mtp.fc" if family.startswith("qwen") else f"{block}eh_proj"
    shared = "mlp.shared_expert" if family.startswith("qwen") else "mlp.shared_experts"
    tensors[f"{join}.weight"] = torch.cat([torch.zeros(_HIDDEN, _HIDDEN), torch.eye(_HIDDEN)], dim=1)
    steps = torch.zeros(WORDS, _HIDDEN)
    steps[torch.from_numpy(NEXT), torch.arange(WORDS)] = 1.0
    inner = tensors[f"{block}{shared}.gate_proj.weight"].shape[0]
    for name in ("gate_proj", "up_proj"):
        tensors[f"{block}{shared}.{name}.weight"] = torch.eye(inner, _HIDDEN)
    down = torch.zeros(_HIDDEN, inner)
    down[:WORDS, :WORDS] = steps[:, :WORDS] - torch.eye(WORDS)
    tensors[f"{block}{shared}.down_proj.weight"] = down / (4 if family.startswith("qwen") else 8)  # half by its gate
    tensors["model.embed_tokens.weight"] = torch.eye(WORDS, _HIDDEN)
    tensors["lm_head.weight"] = 4.0 * steps
    return _write(family, path, tensors, vocab_size=WORDS)


def quantise(path: Path) -> Path:
    """Store the Linears of a checkpoint in float8 with a scale for each 128 by 128, as DeepSeek does: all but routers, the head, and what joins
    a token and the feature before it, of which its config says nothing."""
    file, found = path / "model.safetensors", {}
    for name, tensor in load_file(path / "model.safetensors").items():
        left = name.endswith(("mlp.gate.weight", "eh_proj.weight")) or "embed_tokens" in name or "head.weight" in name
        found[name] = tensor
        if tensor.dim() == 2 and not left:
            padded = F.pad(tensor, [-size % 128 for size in reversed(tensor.shape) for size in (0, size)])
            blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
            scale = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448
            codes = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1)
            found[name] = codes[: tensor.shape[0], : tensor.shape[1]].to(torch.float8_e4m3fn).contiguous()
            found[name.replace(".weight", ".weight_scale_inv")] = scale
    save_file(found, file)
    section = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": section}
    (path / "config.json").write_text(json.dumps(config))
    return path


def _tensors(family: str, path: Path, made: Made | None = None) -> dict[str, Tensor]:
    """By the names of the family's repository."""
    made, last = made or make(family), f"model.layers.{_LAYERS}."
    made.model.save_pretrained(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    token, before, after = (norm.weight.detach() for norm in made.norms)
    join = made.join.weight.detach()
    if not family.startswith("qwen"):
        names = ("enorm", "hnorm", "shared_head.norm", "eh_proj", "embed_tokens", "shared_head.head")
        more = (token, before, after, join, tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])
        return tensors | {f"{last}{name}.weight": tensor.clone() for name, tensor in zip(names, more, strict=True)}
    names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", "fc")
    tensors = {name.replace(last, "mtp.layers.0."): tensor for name, tensor in tensors.items()}
    more = (token, before, after, join)
    return tensors | {f"mtp.{name}.weight": tensor.clone() for name, tensor in zip(names, more, strict=True)}


def _write(family: str, path: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    file = path / "config.json"
    config = json.loads(file.read_text()) | fields
    if not family.startswith("qwen"):
        config["num_nextn_predict_layers"] = 1
    file.write_text(json.dumps(config))
    return path
