"""What weights take, as they are stored, rounded or computed."""

from __future__ import annotations

from sapwood.config.devices import rules_of
from sapwood.config.facts import ModelShape
from sapwood.config.options import Config

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1, "fp8_per_token_head": 1, "int8": 1}


def weight_bytes(config: Config, model: ModelShape) -> tuple[int, str]:
    """Bytes that the weights take, and in what form; about, for the CPU's own kernels: 5 and 6 bits are kept in 8."""
    dtype, rounded = config.model.dtype, config.model.quantization
    if model.stored_bytes and not model.blocks:
        return model.stored_bytes, "quantised as the checkpoint has them"
    on_host = rules_of(config.device.device).rounds and dtype == "float32"
    by_kernels = on_host and config.device.cpu_kernels != "off" and not model.foreign
    if by_kernels and model.stored_bytes:
        return model.stored_bytes * 5 // 4, "in the file's own blocks, at most"
    if rounded is not None:
        bits = (_BLOCK_BITS if by_kernels else {}).get(rounded, _ROUNDED_BITS[rounded])
        return model.num_parameters * bits // 8, f"rounded to {rounded}"
    if by_kernels:
        return model.num_parameters * ITEMSIZE[model.dtype], f"in {model.dtype}, as stored"
    return model.num_parameters * ITEMSIZE[dtype], f"in {dtype}"


_BLOCK_BITS = {"int8": 9, "int4": 5}
"""Of the CPU's own kernels, which have 32 weights to a block."""

_ROUNDED_BITS = {"fp8": 8, "int8": 8, "int4": 5, "nvfp4": 5}


def weights_bytes(config: Config, model: ModelShape) -> int:
    """Of all weights, those of the model that drafts among them."""
    return weight_bytes(config, model)[0] + (0 if model.draft is None else weights_bytes(config, model.draft))
