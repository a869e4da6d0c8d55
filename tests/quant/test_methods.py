"""A method is a file: one made up here stores weights as integers with a scale for each output, but for modules it excepts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapwood.arch import declare
from sapwood.arch.parts import Place, StoredTensor
from sapwood.arch.shard import Piece, shard, weight_map
from sapwood.base.errors import ModelError
from sapwood.hub.files import open_files
from sapwood.kernels import Kernels
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.quant import methods
from sapwood.quant.base import Choice, Weights, everywhere, linear_at, tensors_by
from sapwood.quant.formats import awq, gptq
from sapwood.quant.plain import Plain, PlainWeights
from sapwood.quant.source import Source, plain
from tests import models
from tests.nn import forward

TOKENS = np.random.default_rng(4).integers(3, 199, size=20).tolist()


class RowsOfInt8:
    """`weight` [O, I] int8 and `weight_scale` [O]."""

    shown = "rows of int8"

    def tensors(self, place: Place) -> Sequence[StoredTensor]:
        linear = linear_at(place)
        scales = [
            StoredTensor("weight_scale", f"{part.name}.weight_scale", (linear.rows(index),))
            for index, part in enumerate(linear.parts)
        ]
        return (*linear.tensors(), *scales)

    def create(self, place: Place, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Int8Weights:
        return Int8Weights(place, kernels)


class Int8Weights(Weights):
    def __init__(self, place: Place, kernels: Kernels) -> None:
        super().__init__(kernels)
        part = linear_at(place)
        self.filled = {
            "weight": torch.zeros(part.out, part.inp, dtype=torch.int8),
            "weight_scale": torch.zeros(part.out),
        }
        if part.bias:
            self.filled["bias"] = torch.zeros(part.out)
        self.repacked: Tensor | None = None

    def load(self, piece: Piece, source: Source) -> None:
        whole = piece.param == "weight"
        self.filled[piece.param][piece.target] = (
            source.read(piece.name, piece.source) if whole else plain(piece, source)
        )

    def finish(self) -> None:
        assert self.repacked is None, "once"
        self.repacked = self.filled.pop("weight").T.contiguous()  # as its product wants it

    def forward(self, x_TI: Tensor) -> Tensor:
        assert self.repacked is not None
        y_TO = x_TI @ self.repacked.float() * self.filled["weight_scale"]
        return y_TO + self.filled["bias"] if "bias" in self.filled else y_TO


def read_section(section: Mapping[str, Any]) -> Choice:
    """As config.json says it: modules by their names in the checkpoint, or by what they are within."""
    excepted = tuple(section.get("modules_to_not_convert", ()))

    def choice(place: Place) -> Any:
        names = [place.prefix + part.name for part in linear_at(place).parts]
        within = [name == module or name.startswith(f"{module}.") for name in names for module in excepted]
        return Plain() if any(within) else RowsOfInt8()

    return choice


METHODS = {"rows": read_section}
EXCEPTED = ["lm_head", "model.layers.0.mlp", "model.layers.1.self_attn.o_proj"]


def save(path: Path, family: str, excepted: Sequence[str] = EXCEPTED) -> Path:
    """A tiny model whose Linears are stored so."""
    models.save(family, path)
    file, found = path / "model.safetensors", {}
    for name, tensor in load_file(path / "model.safetensors").items():
        module, _, param = name.rpartition(".")
        quantised = param == "weight" and module.endswith(("_proj", "lm_head"))
        if not quantised or any(module == one or module.startswith(f"{one}.") for one in excepted):
            found[name] = tensor
            continue
        scale = tensor.abs().amax(dim=1) / 127
        found[name], found[f"{module}.weight_scale"] = (tensor / scale[:, None]).round().to(torch.int8), scale
    save_file(found, file)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "rows", "modules_to_not_convert": list(excepted)}
    (path / "config.json").write_text(json.dumps(config))
    return path


def load(path: Path) -> Any:
    files = open_files(path, name=path.name)
    decoder = declare(files.config, methods=METHODS)
    empty = forward.empty(decoder)
    backends = [block.mixer._backend for block in empty.blocks[:1]]
    method = methods.of(decoder.quantization, everywhere(Plain()), METHODS)
    model = build(decoder, Build(device=forward.CPU, dtype=torch.float32, backends=backends, method=method))
    load_weights(model, files)
    return model


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_checkpoint_of_its_own_is_read_by_its_method(family: str, tmp_path: Path) -> None:
    """Each part of a fused Linear has tensors of its own, with biases; for Phi-3 several are runs of one."""
    path = save(tmp_path, family)
    ours, theirs = forward.logits(load(path), TOKENS), models.logits(family, TOKENS)
    assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.05


def test_modules_are_excepted_by_place(tmp_path: Path) -> None:
    model = load(save(tmp_path, "llama"))
    kinds = {path: type(module) for path, module in model.named_modules() if isinstance(module, Weights)}
    plain = {path for path, kind in kinds.items() if kind is PlainWeights}
    assert plain == {"head", "blocks.0.ffn.gate_up", "blocks.0.ffn.down", "blocks.1.mixer.out"}
    assert all(kinds[path] is Int8Weights for path in kinds.keys() - plain)


def test_what_is_missing_is_named_and_what_a_plain_module_finds_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "llama", excepted=[*EXCEPTED, "model.layers.1.mlp.up_proj"])
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = EXCEPTED
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight_scale"):
        load(path)
    config["quantization_config"]["modules_to_not_convert"] = [*EXCEPTED, "model.layers.1.mlp"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"2 left over: .*down_proj\.weight_scale.*gate_proj\.weight_scale"):
        load(path)


def test_ranks_cut_its_tensors_as_they_cut_the_linear() -> None:
    decoder = declare(models.config("llama") | {"vocab_size": 200})
    choice = everywhere(RowsOfInt8())
    local = shard(decoder, rank=1, size=2, tensors=tensors_by(choice))
    pieces = {piece.name: piece for piece in weight_map(local, tensors=tensors_by(choice))}
    assert pieces["model.layers.0.mlp.up_proj.weight_scale"].source == (slice(48, 96),)
    assert pieces["model.layers.0.mlp.up_proj.weight_scale"].target == (slice(48, 96),)
    assert pieces["model.layers.0.mlp.down_proj.weight_scale"].source == (slice(0, 64),)


def test_a_method_that_nobody_knows_is_refused_by_name() -> None:
    config = models.config("llama") | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(ModelError, match=r"quantization_config = .*gptq.*: only plain weights, rows can be loaded"):
        declare(config, methods=METHODS)
    with pytest.raises(ModelError, match=r"quantization_config = .*gptq.*: only plain weights can be loaded"):
        declare(config)


def test_equal_methods_are_one() -> None:
    """So that parts of a Linear whose entries say the same are multiplied together."""
    assert awq.method(32, zeros=True) is awq.method(32, zeros=True)
    of_gptq = {"symmetric": True, "ordered": False, "offset": 1}
    assert gptq.method(4, 32, **of_gptq) is gptq.method(4, 32, **of_gptq)
