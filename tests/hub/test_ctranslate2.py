"""Whisper in CTranslate2's file: the same tensors as Hugging Face's, and a file that is damaged says so."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sapwood.arch import declare
from sapwood.base.errors import ModelError
from sapwood.hub.files import open_files
from sapwood.nn.checkpoint import Safetensors
from tests import seq2seq

_SPELT = {"self_attn": "self_attention", "encoder_attn": "attention"}


def written(path: Path, kind: int = 0) -> dict[str, torch.Tensor]:
    """The tiny Whisper as CTranslate2 has it, in float32 by default; returns its tensors by their own names."""
    state = dict(seq2seq.make("whisper").model.state_dict())
    variables: dict[str, torch.Tensor] = {}
    for side, layers in (("encoder", 2), ("decoder", 3)):
        variables[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        for name, ours in (("gamma", "weight"), ("beta", "bias")):
            variables[f"{side}/layer_norm/{name}"] = state[f"{side}.layer_norm.{ours}"]
        for layer in range(layers):
            here, there = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
                variables[f"{here}/ffn/layer_norm/{theirs}"] = state[f"{there}.final_layer_norm.{ours}"]
                for number in (0, 1):
                    variables[f"{here}/ffn/linear_{number}/{ours}"] = state[f"{there}.fc{number + 1}.{ours}"]
                for theirs_too, part in ((a, b) for b, a in _SPELT.items() if f"{there}.{b}.q_proj.weight" in state):
                    variables[f"{here}/{theirs_too}/layer_norm/{theirs}"] = state[f"{there}.{part}_layer_norm.{ours}"]
                    q, k, v, out = (
                        state.get(f"{there}.{part}.{one}_proj.{ours}", torch.zeros(32))
                        for one in ("q", "k", "v", "out")
                    )
                    fused = [torch.cat([q, k, v]), out] if part == "self_attn" else [q, torch.cat([k, v]), out]
                    for number, tensor in enumerate(fused):
                        variables[f"{here}/{theirs_too}/linear_{number}/{ours}"] = tensor
    for conv in ("conv1", "conv2"):
        for ours in ("weight", "bias"):
            variables[f"encoder/{conv}/{ours}"] = state[f"encoder.{conv}.{ours}"]
    variables["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + _string("WhisperSpec") + struct.pack("<II", 3, len(variables) + 2))
        for side, heads in (("encoder", 4), ("decoder", 2)):
            file.write(_string(f"{side}/num_heads") + struct.pack("<BBIH", 0, 2, 2, heads))
        for name, tensor in variables.items():
            data = tensor.numpy().astype(np.float32).tobytes()
            shape = struct.pack(f"<{tensor.dim()}I", *tensor.shape)
            file.write(_string(name) + bytes([tensor.dim()]) + shape + struct.pack("<BI", kind, len(data)) + data)
        file.write(struct.pack("<I", 0))
    return {f"model.{name}": tensor for name, tensor in state.items()}


def _string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_tensors_and_config(tmp_path: Path) -> None:
    from contextlib import ExitStack

    state = written(tmp_path / "model.bin")
    (tmp_path / "config.json").write_text(
        json.dumps({"suppress_ids": [5], "lang_ids": [], "alignment_heads": [[0, 1]]})
    )
    files = open_files(tmp_path, name="whisper")
    decoder = declare(files.config)
    assert files.config["encoder_attention_heads"] == 4 and files.config["decoder_attention_heads"] == 2
    assert decoder.hidden_size == 32 and len(decoder.blocks) == 3 and decoder.vocab_size == 199
    assert files.generation_config == {
        "eos_token_id": 50256,
        "decoder_start_token_id": 50257,
        "suppress_tokens": [5],
        "alignment_heads": [[0, 1]],
    }
    with ExitStack() as stack:
        source = Safetensors([tmp_path / "model.bin"], stack)
        shapes = source.shapes()
        for name, tensor in state.items():
            assert shapes[name] == tuple(tensor.shape), name
            assert torch.equal(source.read(name, (slice(None),) * tensor.dim()), tensor), name
        assert {name for name in shapes if name not in state} == {
            name for name in shapes if name.endswith("k_proj.bias")
        }


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    written(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged or cut off"):
        open_files(tmp_path, name="whisper")
    written(path, kind=1)  # int8
    with pytest.raises(ModelError, match="quantised weights"):
        open_files(tmp_path, name="whisper")
