"""Factors of keys and values from checkpoints to the backends that divide by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapwood.arch import Decoder, declare
from sapwood.arch.groups import kv_groups
from sapwood.arch.shard import shard
from sapwood.attention.reference import Reference
from sapwood.base.errors import ModelError
from sapwood.kernels import PLAIN
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.nn.model import Model
from sapwood.parallel import ALONE, NO_PIPE
from sapwood.quant.base import everywhere
from sapwood.quant.plain import Plain
from tests import models
from tests.nn import forward

CPU = torch.device("cpu")
FLOAT8 = torch.float8_e4m3fn
ATTENTION = "model.layers.{}.self_attn."


def checkpoint(path: Path, extra: Mapping[str, Any], family: str = "llama") -> Path:
    folder = models.save(family, path)
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    tensors |= {name: torch.as_tensor(value, dtype=torch.float32) for name, value in extra.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def loaded(path: Path, decoder: Decoder | None = None, stored: torch.dtype = FLOAT8) -> Model:
    files = forward.open_files(path, name="tiny")
    decoder = declare(files.config) if decoder is None else decoder
    backends = [Reference(group, i, CPU, stored) for i, group in enumerate(kv_groups(decoder, forward.PAGE_SIZE))]
    for backend in backends:
        backend.allocate(forward.MAX_TOKENS // forward.PAGE_SIZE + 1)
    method, plain = everywhere(Plain()), torch.float32
    how = Build(CPU, plain, backends, kernels=PLAIN, method=method, mesh=ALONE, pipe=NO_PIPE)
    made = build(decoder, how)
    load_weights(made, files)
    return made


def factors(model: Model) -> list[list[list[float]]]:
    """Of each layer, of keys and of values, of each head."""
    found = [module.kept for module in model.modules() if getattr(module, "kept", None)]
    return [kept.of_layers_L2K[layer].tolist() for layer, kept in found]


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ("k_scale", "v_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
    ],
)
def test_names(tmp_path: Path, keys: str, values: str) -> None:
    prefix = ATTENTION.format(1)
    extra = {prefix + keys: [0.5], prefix + values: 2.0, prefix + "q_scale": 7.0}
    assert factors(loaded(checkpoint(tmp_path, extra))) == [[[1, 1], [1, 1]], [[0.5, 0.5], [2, 2]]]


def test_one_for_keys_and_values(tmp_path: Path) -> None:
    assert factors(loaded(checkpoint(tmp_path, {ATTENTION.format(0) + "kv_scale": 0.25})))[0] == [[0.25] * 2] * 2


def test_fused_projections(tmp_path: Path) -> None:
    prefix = ATTENTION.format(0) + "qkv_proj."
    path = checkpoint(tmp_path, {prefix + "k_scale": 0.5, prefix + "v_scale": 2.0}, "phi3")
    assert factors(loaded(path))[0] == [[0.5] * 2, [2.0] * 2]


def test_heads_have_their_own_and_ranks_those_of_theirs(tmp_path: Path) -> None:
    extra = {ATTENTION.format(0) + "k_scale": torch.tensor([0.5, 4.0]).reshape(2, 1, 1)}
    path = checkpoint(tmp_path, extra)
    assert factors(loaded(path))[0] == [[0.5, 4.0], [1, 1]]
    whole = declare(forward.open_files(path, name="tiny").config)
    for rank, one in enumerate((0.5, 4.0)):
        assert factors(loaded(path, shard(whole, rank=rank, size=2)))[0] == [[one], [1]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "k_scale of tiny is not all above zero"),
        (float("nan"), "not all above zero and finite"),
        ([1.0, 2.0, 3.0], "3 numbers, wants one, or one for each of 2 heads.*--kv-cache-dtype"),
    ],
)
def test_what_cannot_divide_is_named(tmp_path: Path, value: Any, message: str) -> None:
    path = checkpoint(tmp_path, {ATTENTION.format(1) + "k_scale": value})
    with pytest.raises(ModelError, match=message):
        loaded(path)
    assert factors(loaded(path, stored=torch.float16)) == [], "nothing is divided there"


@pytest.mark.parametrize(
    ("section", "used"),
    [
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, True),
        ({"kv_cache_scheme": None}, True),
        ({"quantization": {"kv_cache_quant_algo": "FP8"}}, True),
        ({"kv_cache_scheme": {"num_bits": 4, "type": "float"}}, False),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "int"}}, False),
        ({"quantization": {"kv_cache_quant_algo": "NVFP4"}}, False),
    ],
)
def test_only_those_of_float8_are_used(tmp_path: Path, section: dict[str, Any], used: bool) -> None:
    path = checkpoint(tmp_path, {ATTENTION.format(0) + "k_scale": 0.5})
    decoder = declare(forward.open_files(path, name="tiny").config)
    assert (factors(loaded(path, replace(decoder, quantization=section)))[0][0] == [0.5] * 2) == used


def test_logits_with_values_that_float8_has_no_digits_for(tmp_path: Path) -> None:
    """Values a millionth of what they were, and outputs a million times as large: the same model."""
    small, extra = 1e-6, dict[str, Tensor]()
    tensors = load_file(models.save("llama", tmp_path / "plain") / "model.safetensors")
    for layer in range(2):
        prefix = ATTENTION.format(layer)
        for param in ("weight", "bias"):
            extra[f"{prefix}v_proj.{param}"] = tensors[f"{prefix}v_proj.{param}"] * small
        extra[prefix + "o_proj.weight"] = tensors[prefix + "o_proj.weight"] / small
    tokens = list(range(3, 40))
    wanted = models.logits("llama", tokens)

    def off(scales: Mapping[str, float]) -> float:
        path = checkpoint(tmp_path / f"scaled-{len(scales)}", extra | dict(scales))
        return float((forward.logits(loaded(path), tokens) - wanted).abs().mean() / wanted.abs().mean())

    with_them = off({ATTENTION.format(layer) + "v_scale": small for layer in range(2)})
    assert with_them < 0.05
    assert off({}) > 10 * with_them
