"""A GGUF file in another of its types, through the quantisers of the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, Keys
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from gguf.quants import dequantize, quantize

from sapwood.base.errors import UserError
from sapwood.hub.gguf import open_gguf

_TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_SKIPPED = ("GGUF.", "general.file_type", "general.quantization_version", Keys.General.ARCHITECTURE)
_VERSION = 2

Told = Callable[[int, int], None]
"""How many of how many tensors are done."""


def type_of(name: str) -> GGMLQuantizationType:
    """Raises UserError for a type that cannot be made."""
    if name.upper() in _TYPES:
        return GGMLQuantizationType[name.upper()]
    raise UserError(
        f"--scheme gguf:{name}: the gguf package can write {', '.join(_TYPES)} only; llama.cpp's `llama-quantize` makes "
        "the others, and Sapwood reads them."
    )


def quantise(source: Path, output: Path, kind: GGMLQuantizationType, told: Told) -> None:
    """Write `source` to the file `output`, its matrices in another type; what has rows of no whole blocks becomes F16."""
    if source.suffix != ".gguf":
        raise UserError(
            f"{source} is no GGUF file: llama.cpp's `convert_hf_to_gguf.py --outtype f16` makes one, which can then be quantised."
        )
    file, reader = open_gguf(source), GGUFReader(source)
    writer = GGUFWriter(output, file.metadata[Keys.General.ARCHITECTURE])
    for name, field in reader.fields.items():
        if not name.startswith(_SKIPPED):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_quantization_version(_VERSION)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.name}"])
    for number, tensor in enumerate(reader.tensors, 1):
        _add(writer, tensor, kind)
        told(number, len(reader.tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, tensor: Any, kind: GGMLQuantizationType) -> None:
    if len(tensor.shape) < 2 or "norm" in tensor.name:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        return
    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if values.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
