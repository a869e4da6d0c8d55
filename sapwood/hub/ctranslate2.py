"""Whisper as CTranslate2 stores it (model.bin): its tensors by Hugging Face's names, as runs of bytes of the file, and its config.

The file is a header and variables, each a name, a shape, a type and its bytes. Queries, keys and values lie in one tensor, row behind row, so
that each is a run of bytes too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from sapwood.base.errors import ModelError

_VERSION, _SPEC = 6, "WhisperSpec"
_TYPES: Mapping[int, tuple[str, int]] = MappingProxyType({0: ("F32", 4), 4: ("F16", 2), 5: ("BF16", 2)})
_MOST = 1 << 16  # variables; the largest model has some two thousand
_ENGLISH, _FIRST = 51864, 50256  # the vocabulary of models for English only, and the end of a text there
_NORMS: Mapping[str, str] = MappingProxyType({"gamma": "weight", "beta": "bias"})
_ATTENTION: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "self_attention": {"linear_0": ("q_proj", "k_proj", "v_proj"), "linear_1": ("out_proj",)},
    "attention": {"linear_0": ("q_proj",), "linear_1": ("k_proj", "v_proj"), "linear_2": ("out_proj",)},
})  # fmt: skip
_BLOCK: Mapping[str, tuple[str, str]] = MappingProxyType({
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "attention": ("encoder_attn", "encoder_attn_layer_norm"),
})  # fmt: skip


class Variable(NamedTuple):
    """Bytes [start, stop) of the file, of a type by the name that safetensors has for it ("" for one that is no weight)."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


def is_ctranslate2(path: Path) -> bool:
    """Whether this is a model of CTranslate2's, by how it begins."""
    try:
        with path.open("rb") as file:
            head = file.read(6 + len(_SPEC) + 1)
    except OSError:
        return False
    return head.startswith(struct.pack("<IH", _VERSION, len(_SPEC) + 1)) and head[6:].rstrip(b"\0") == _SPEC.encode()


def tensors_of(path: Path) -> dict[str, Variable]:
    """The weights by Hugging Face's names. Raises ModelError for a file that is damaged, or whose weights are quantised."""
    found: dict[str, Variable] = {}
    for name, variable in _variables(path).items():
        if not variable.shape:
            continue  # a fact, no weight
        if not variable.dtype:
            raise ModelError(f"{path} has quantised weights ({name}): take a model converted to float16 or float32.")
        names = _named(name)
        if not names or variable.shape[0] % len(names):
            raise ModelError(f"{path} holds {name}, which no Whisper model has.")
        rows, size = variable.shape[0] // len(names), (variable.stop - variable.start) // len(names)
        for place, one in enumerate(names):
            start = variable.start + place * size
            found[one] = Variable(start, start + size, variable.dtype, (rows, *variable.shape[1:]))
    return found


def config_of(path: Path) -> dict[str, Any]:
    """config.json as Hugging Face's Whisper has it. Raises ModelError."""
    variables = _variables(path)

    def shape(name: str) -> tuple[int, ...]:
        if name not in variables or not variables[name].shape:
            raise ModelError(f"{path} has no {name}: it is no Whisper model.")
        return variables[name].shape

    def layers(side: str) -> int:
        return len(
            {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2}
        )

    hidden, bins = shape("encoder/conv1/weight")[:2]
    vocab = shape("decoder/embeddings/weight")[0]
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", layers(side)),
            ("attention_heads", _heads(path, variables.get(f"{side}/num_heads"), hidden)),
            ("ffn_dim", shape(f"{side}/layer_0/ffn/linear_0/weight")[0]),
        )
    }
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": hidden,
        "num_mel_bins": bins,
        "vocab_size": vocab,
        "max_source_positions": shape("encoder/position_encodings/encodings")[0],
        "max_target_positions": shape("decoder/position_encodings/encodings")[0],
        "activation_function": "gelu",
        "dtype": {"F16": "float16", "BF16": "bfloat16"}.get(variables["decoder/embeddings/weight"].dtype, "float32"),
        **sizes,
    }


def generation_of(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json likewise: from the sizes, and what stands in CTranslate2's own config.json."""
    end = _FIRST + (config["vocab_size"] > _ENGLISH)
    names = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    told = {names.get(name, name): value for name, value in given.items() if name in (*names, "alignment_heads")}
    return {"eos_token_id": end, "decoder_start_token_id": end + 1, **told}


def _heads(path: Path, told: Variable | None, hidden: int) -> int:
    """As the file says; all sizes that there are have heads of 64."""
    if told is None:
        return hidden // 64
    with path.open("rb") as file:
        file.seek(told.start)
        return int.from_bytes(file.read(told.stop - told.start), "little")


def _named(name: str) -> tuple[str, ...]:
    """What it is called elsewhere; several where several lie in one."""
    side, *rest = name.split("/")
    match rest:
        case ["embeddings", "weight"]:
            return ("model.decoder.embed_tokens.weight",)
        case ["position_encodings", "encodings"]:
            return (f"model.{side}.embed_positions.weight",)
        case ["conv1" | "conv2" as conv, param]:
            return (f"model.{side}.{conv}.{param}",)
        case ["layer_norm", param]:
            return (f"model.{side}.layer_norm.{_NORMS.get(param, param)}",)
        case [layer, "ffn", "layer_norm", param]:
            return (f"{_layer(side, layer)}.final_layer_norm.{_NORMS.get(param, param)}",)
        case [layer, "ffn", "linear_0" | "linear_1" as linear, param]:
            return (f"{_layer(side, layer)}.{'fc1' if linear == 'linear_0' else 'fc2'}.{param}",)
        case [layer, part, "layer_norm", param] if part in _BLOCK:
            return (f"{_layer(side, layer)}.{_BLOCK[part][1]}.{_NORMS.get(param, param)}",)
        case [layer, part, linear, param] if linear in _ATTENTION.get(part, {}):
            return tuple(f"{_layer(side, layer)}.{_BLOCK[part][0]}.{one}.{param}" for one in _ATTENTION[part][linear])
    return ()


def _layer(side: str, layer: str) -> str:
    return f"model.{side}.layers.{layer.removeprefix('layer_')}"


def _variables(path: Path) -> dict[str, Variable]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            return dict(_read(file, size))
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path} is damaged or cut off: fetch it again.") from error


def _read(file: BinaryIO, size: int) -> Iterator[tuple[str, Variable]]:
    """Raises struct.error or ValueError where the file ends too soon."""
    (version,) = struct.unpack("<I", file.read(4))
    spec = _string(file)
    _, count = struct.unpack("<II", file.read(8))
    if version != _VERSION or spec != _SPEC or count > _MOST:
        raise ValueError("another format")
    for _ in range(count):
        name = _string(file)
        (rank,) = struct.unpack("<B", file.read(1))
        shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
        kind, length = struct.unpack("<BI", file.read(5))
        start = file.tell()
        dtype, itemsize = _TYPES.get(kind, ("", 0))
        elements = 1
        for one in shape:
            elements *= one
        if start + length > size or (dtype and elements * itemsize != length):
            raise ValueError(f"{name} does not fit the file")
        file.seek(start + length)
        yield name, Variable(start, start + length, dtype, shape)


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\0").decode()
