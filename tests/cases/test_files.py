"""Model files as people have them: what does not matter changes nothing, and what cannot be used is said in words."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sapwood.base.errors import ModelError
from sapwood.hub import open_files
from tests import models
from tests.nn import forward, ggufs

TOKENS = np.random.default_rng(4).integers(3, 199, size=12).tolist()
Edit = Callable[[Path], Any]


def near(path: Path, family: str) -> None:
    assert (forward.logits(forward.load(path), TOKENS) - models.logits(family, TOKENS)).abs().max() < 1e-4


def renamed(new: Callable[[str], str]) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({new(name): tensor.clone() for name, tensor in load_file(file).items()}, file)

    return edit


def stored_as(dtype: torch.dtype) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)

    return edit


def stray(folder: Path) -> None:
    """Another file of weights, which the index does not name."""
    whole = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(whole, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"consolidated.weight": torch.zeros(3)}, folder / "consolidated.safetensors")


@pytest.mark.parametrize("edit", [stored_as(torch.float64), stray], ids=["float64", "a stray file beside an index"])
def test_directories_that_load(tmp_path: Path, edit: Edit) -> None:
    edit(models.save("llama", tmp_path))
    near(tmp_path, "llama")


def scaled(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    scales = {name + "_scale_inv": torch.ones(1) for name in tensors if name.endswith("proj.weight")}
    save_file(tensors | scales, file)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (renamed(lambda name: f"language_model.{name}"), "language_model"),
        (renamed(lambda name: f"_orig_mod.{name}"), "_orig_mod"),
        (renamed(lambda name: name.removeprefix("model.")), "missing"),
        (renamed(lambda name: name.replace("lm_head.weight", "lm_head.bias")), r"lm_head\.weight"),
        (scaled, "left over.*_scale_inv"),
    ],
    ids=["within a larger model", "saved while compiled", "without a prefix", "no head", "scales beside weights"],
)
def test_directories_that_do_not(tmp_path: Path, edit: Edit, says: str) -> None:
    edit(models.save("llama", tmp_path))
    with pytest.raises(ModelError, match=says):
        forward.load(tmp_path)


def test_weights_that_are_not_numbers_make_no_numbers(tmp_path: Path) -> None:
    """The engine refuses to draw from them; nothing is said from such a model."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] = torch.nan
        save_file(tensors, folder / "model.safetensors")

    spoil(models.save("llama", tmp_path))
    assert forward.logits(forward.load(tmp_path), TOKENS).isnan().any(-1).all()


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def linked(path: Path) -> None:
    path.rename(path.with_name("blob"))
    path.symlink_to("blob")


@pytest.mark.parametrize("edit", [longer, linked], ids=["bytes at the end", "a link"])
def test_gguf_files_that_load(tmp_path: Path, edit: Edit) -> None:
    path = ggufs.write("llama", tmp_path / "un modèle.gguf")
    edit(path)
    near(path, "llama")


def widened(writer: gguf.GGUFWriter) -> None:
    """Every number in another type than converters write it in."""
    kinds = gguf.GGUFValueType
    wider = {kinds.UINT32: kinds.INT64, kinds.FLOAT32: kinds.FLOAT64}
    for value in writer.kv_data[0].values():
        value.type = wider.get(value.type, value.type)


def narrowed(writer: gguf.GGUFWriter) -> None:
    for key, value in writer.kv_data[0].items():
        if value.type == gguf.GGUFValueType.UINT32 and key != "general.alignment":
            value.type = gguf.GGUFValueType.INT16


def one_each(writer: gguf.GGUFWriter) -> None:
    """The same number once for every layer."""
    layers = writer.kv_data[0]["llama.block_count"].value
    for key in ("llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length"):
        writer.add_array(key, [writer.kv_data[0].pop(key).value] * layers)


NUMBERS: dict[str, dict[str, Any]] = {
    "wider numbers": {"edit": widened},
    "narrower numbers": {"edit": narrowed},
    "a number for each layer": {"edit": one_each},
    "tensors further apart": {"edit": lambda writer: writer.add_custom_alignment(64)},
    "no keys of rope": {"skip": ("rope.freq_base", "rope.dimension_count")},
    "norms in halves": {"norms": gguf.GGMLQuantizationType.F16},
}


@pytest.mark.parametrize("how", NUMBERS.values(), ids=NUMBERS)
def test_gguf_files_that_say_it_otherwise(tmp_path: Path, how: dict[str, Any]) -> None:
    path = ggufs.write("llama", tmp_path / "model.gguf", **how)
    assert (forward.logits(forward.load(path), TOKENS) - models.logits("llama", TOKENS)).abs().max() < 2e-3


@pytest.mark.parametrize("said", [7, 100_000])
def test_a_size_of_the_vocabulary_that_is_not_that_of_the_rows(tmp_path: Path, said: int) -> None:
    near(ggufs.write("llama", tmp_path / "model.gguf", vocab_size=said), "llama")


def test_sizes_may_be_derived(tmp_path: Path) -> None:
    """Older converters write neither the size of heads nor that of the rotated part."""
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    near(ggufs.write("qwen2", tmp_path / "model.gguf", skip=keys), "qwen2")


@pytest.mark.parametrize(
    ("name", "start", "says"),
    [
        ("sha256-0123", None, r"\.gguf"),
        ("model.GGUF", None, r"\.gguf"),
        ("model.gguf", b"GGUF" + struct.pack("<I", 4), "version 4"),
        ("model.gguf", b"PK\3\4", "not a GGUF file"),
    ],
    ids=["a blob without an ending", "an ending in capitals", "a later version", "an archive"],
)
def test_gguf_files_that_do_not(tmp_path: Path, name: str, start: bytes | None, says: str) -> None:
    path = ggufs.write("llama", tmp_path / "written.gguf").rename(tmp_path / name)
    if start is not None:
        path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(ModelError, match=says):
        forward.load(open_files(path, name="odd"))
