"""GGUF's blocks as numbers of eight bits or less, with a scale and an offset for each group.

Layouts are those of ggml: a block is 32 or 256 numbers of a row, and its scales.

Suffix legend: O outputs, N blocks of a row, K bytes or numbers of a block, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.kernels.planes import Planes, of_coded, of_numbers


class Numbers(NamedTuple):
    """value_OI = number * scale + offset, for each group of inputs. `bits` are as many as the numbers need."""

    numbers_OI: Tensor
    scale_OG: Tensor
    offset_OG: Tensor | None
    bits: int


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of the forms IQ4 stand for."""


def of_blocks(parts: Sequence[tuple[int, Tensor]]) -> Planes | None:
    """One weight from rows of blocks [O, bytes], each with the number of its form (`FORMS`), side by side. Scales become float16.
    None where kernels cannot read it."""
    read = [FORMS[form][1](data.view(len(data), -1, FORMS[form][0])) for form, data in parts]
    size = min(one.numbers_OI.shape[1] // one.scale_OG.shape[1] for one in read)
    bits = max(one.bits for one in read)
    numbers_OI = torch.cat([one.numbers_OI for one in read])
    scale_OG = torch.cat([_finer(one.scale_OG, one, size) for one in read]).half()
    if {form for form, _ in parts} <= {20, 23}:
        codes = torch.zeros(256, dtype=torch.uint8)
        codes[torch.tensor(IQ4) + 128] = torch.arange(16, dtype=torch.uint8)
        codes_OI = codes.to(numbers_OI.device)[numbers_OI.int() + 128]
        return of_coded(codes_OI[:, ::2] | codes_OI[:, 1::2] << 4, torch.tensor(IQ4).float(), scale_OG)
    offset_OG = None
    if any(one.offset_OG is not None for one in read):
        offsets = [torch.zeros_like(one.scale_OG) if one.offset_OG is None else one.offset_OG for one in read]
        offset_OG = torch.cat([_finer(offset, one, size) for offset, one in zip(offsets, read, strict=True)]).half()
    return of_numbers(numbers_OI, scale_OG, offset_OG, four=bits <= 4)


def row_bytes(form: int, num_inputs: int) -> int:
    """Of a row of blocks, which it fills."""
    return num_inputs // (256 if 10 <= form <= 14 or form == 23 else 32) * FORMS[form][0]


def _finer(plane_OG: Tensor, one: Numbers, size: int) -> Tensor:
    """The same for groups of `size` inputs."""
    return plane_OG.repeat_interleave(one.numbers_OI.shape[1] // one.scale_OG.shape[1] // size, dim=1)


def _made(numbers: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Numbers:
    """From blocks [O, N, ...] of each."""
    return Numbers(
        numbers.flatten(1).to(torch.int8), scale.flatten(1), None if offset is None else offset.flatten(1), bits
    )


def _half(blocks_ONK: Tensor, first: int) -> Tensor:
    """A float16 [O, N, 1], as float32."""
    return blocks_ONK[..., first : first + 2].contiguous().view(torch.float16).float()


def _halves(bytes_ONK: Tensor) -> Tensor:
    """Low halves of all bytes, then the high ones."""
    return torch.cat((bytes_ONK & 0xF, bytes_ONK >> 4), dim=-1).short()


def _bits(bytes_ONK: Tensor, each: int) -> Tensor:
    """[O, N, 8 / each, K]: the lowest `each` bits of all bytes, then the next."""
    shifts = torch.arange(0, 8, each, device=bytes_ONK.device, dtype=torch.uint8)
    return (bytes_ONK.unsqueeze(-2) >> shifts[:, None] & (1 << each) - 1).short()


def _fifth(bytes_ON4: Tensor) -> Tensor:
    """The bits of four bytes, from the lowest of the first on, where a fifth one belongs."""
    return _bits(bytes_ON4, 1).transpose(-1, -2).flatten(-2) << 4


def _q4_0(b: Tensor) -> Numbers:
    return _made(_halves(b[..., 2:]) - 8, _half(b, 0), None, 4)


def _q4_1(b: Tensor) -> Numbers:
    scale = _half(b, 0)
    return _made(_halves(b[..., 4:]) - 8, scale, _half(b, 2) + 8 * scale, 4)


def _q5_0(b: Tensor) -> Numbers:
    return _made((_halves(b[..., 6:]) | _fifth(b[..., 2:6])) - 16, _half(b, 0), None, 5)


def _q5_1(b: Tensor) -> Numbers:
    scale = _half(b, 0)
    return _made((_halves(b[..., 8:]) | _fifth(b[..., 4:8])) - 16, scale, _half(b, 2) + 16 * scale, 5)


def _q8_0(b: Tensor) -> Numbers:
    return _made(b[..., 2:].contiguous().view(torch.int8), _half(b, 0), None, 8)


def _twos(bytes_ONK: Tensor) -> Tensor:
    """Two bits of 256 numbers in 64 bytes: 32 bytes are 128 of them."""
    return _bits(bytes_ONK.unflatten(-1, (2, 32)), 2).flatten(-3)


def _q2_k(b: Tensor) -> Numbers:
    scale = _half(b, 80) * (b[..., :16] & 0xF)
    return _made(_twos(b[..., 16:80]), scale, -_half(b, 82) * (b[..., :16] >> 4), 4)


def _q3_k(b: Tensor) -> Numbers:
    high = _bits(b[..., :32], 1).flatten(-2)
    low, packed = b[..., 96:104], b[..., 104:108]
    four = torch.cat((low & 0xF, low >> 4), dim=-1).short()
    scale = _half(b, 108) * ((four | _bits(packed, 2).flatten(-2) << 4) - 32)
    return _made(_twos(b[..., 32:96]) + 4 * high - 4, scale, None, 4)


def _sixes(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of eight groups, six bits each in twelve bytes."""
    first, second, mixed = b[..., :4].short(), b[..., 4:8].short(), b[..., 8:].short()
    scale = torch.cat((first & 63, mixed & 0xF | first >> 6 << 4), dim=-1)
    return scale, torch.cat((second & 63, mixed >> 4 | second >> 6 << 4), dim=-1)


def _k(b: Tensor, numbers: Tensor, middle: int, bits: int) -> Numbers:
    scales, minima = _sixes(b[..., 4:16])
    scale = _half(b, 0) * scales
    return _made(numbers - middle, scale, middle * scale - _half(b, 2) * minima, bits)


def _q4_k(b: Tensor) -> Numbers:
    return _k(b, _bits(b[..., 16:].unflatten(-1, (4, 32)), 4).flatten(-3), 8, 4)


def _q5_k(b: Tensor) -> Numbers:
    four = _bits(b[..., 48:].unflatten(-1, (4, 32)), 4).flatten(-3)
    return _k(b, four | _bits(b[..., 16:48], 1).flatten(-2) << 4, 16, 5)


def _q6_k(b: Tensor) -> Numbers:
    four = _bits(b[..., :128].unflatten(-1, (2, 64)), 4).flatten(-3)
    two = _bits(b[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-3)
    scale = b[..., 192:208].contiguous().view(torch.int8) * _half(b, 208)
    return _made((four | two << 4) - 32, scale, None, 6)


def _from_table(codes: Tensor) -> Tensor:
    return torch.tensor(IQ4, dtype=torch.int16, device=codes.device)[codes.int()]


def _iq4_nl(b: Tensor) -> Numbers:
    return _made(_from_table(_halves(b[..., 2:])), _half(b, 0), None, 8)


def _iq4_xs(b: Tensor) -> Numbers:
    low = _bits(b[..., 4:8], 4).transpose(-1, -2).flatten(-2)
    high = _bits(b[..., 2:4], 2).transpose(-1, -2).flatten(-2)
    scale = _half(b, 0) * ((low | high << 4) - 32)
    return _made(_from_table(_halves(b[..., 8:].unflatten(-1, (8, 16)))), scale, None, 8)


FORMS: Mapping[int, tuple[int, Callable[[Tensor], Numbers]]] = MappingProxyType(
    {
        2: (18, _q4_0),
        3: (20, _q4_1),
        6: (22, _q5_0),
        7: (24, _q5_1),
        8: (34, _q8_0),
        10: (84, _q2_k),
        11: (110, _q3_k),
        12: (144, _q4_k),
        13: (176, _q5_k),
        14: (210, _q6_k),
        20: (18, _iq4_nl),
        23: (136, _iq4_xs),
    }
)
"""The forms by GGUF's numbers: bytes of a block, and what reads blocks [O, N, K]."""
