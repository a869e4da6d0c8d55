"""Which kernel multiplies quantised weights, and how it is cut: what was best on an H100 for the sizes of llama-8b.

Suffix legend: T tokens, I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.kernels import Activation, Quantised, RmsNorm
from sapwood.kernels.planes import Planes
from sapwood.kernels.triton import quant_few, quant_many, quant_scaled
from sapwood.kernels.triton.quant_round import rounded
from sapwood.kernels.triton.quant_widen import widened

_FEW_TOKENS = 16
_MOST_DECODED = 512
"""Tokens beyond which it is faster to write the weights out as plain ones, for the library's product."""


def _few(
    x_TI: Tensor,
    weights: Planes,
    bias_O: Tensor | None,
    norm: RmsNorm | None,
    residual_TI: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    cut = few_setting(weights, len(x_TI))
    return quant_few.product(x_TI, weights, bias_O, norm, residual_TI, activation, cut)


def few_setting(weights: Planes, num_tokens: int) -> quant_few.Setting:
    return quant_few.Setting(True, 16, 4, 128, 4, 3)


def few_tokens(weights: Planes) -> int:
    return _FEW_TOKENS


def _many(x_TI: Tensor, weights: Planes, bias_O: Tensor | None) -> Tensor:
    if len(x_TI) > _MOST_DECODED:
        return F.linear(x_TI, widened(weights, x_TI.dtype), bias_O)
    return quant_many.product(x_TI, weights, bias_O, quant_many.Setting(128, 128, 64, 8, 3))


def _rounded(
    x_TI: Tensor,
    weights: Planes,
    norm: RmsNorm | None,
    residual_TI: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor | None]:
    assert weights.rounding is not None
    dtype = torch.int8 if weights.form == "int8" else torch.float8_e4m3fn
    return rounded(x_TI, dtype, weights.rounding, weights.input_scale, norm, residual_TI, activation)


def _eight(
    codes_TI: Tensor, scale_GT: Tensor | None, weights: Planes, bias_O: Tensor | None, dtype: torch.dtype
) -> Tensor:
    values_OI = weights.codes_OB.view(codes_TI.dtype)
    row_O = weights.row_O if weights.rounded_O is None else weights.rounded_O
    cut = quant_scaled.Setting(128, 128, 128, 8, 3)
    return quant_scaled.product(codes_TI, scale_GT, values_OI, weights.scale_GS, row_O, bias_O, dtype, cut)


QUANTISED = Quantised(few=_few, few_tokens=few_tokens, many=_many, rounded=_rounded, eight=_eight)
