"""Which kernel multiplies quantised weights, and how it is cut: what was best on an H100 for the sizes of llama-8b.

One token, or a few, are bound by the bytes of the weights. Rounded activations go through matrix units of eight bits, and from
some number of tokens on through the library, where it knows the scales. Others are multiplied in
their own dtype with weights that are decoded in registers, until there are so many that it is faster to write the weights
out as plain ones first.

Suffix legend: T tokens, I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of
from sapwood.kernels import Activation, Quantised, RmsNorm
from sapwood.kernels.planes import BLOCK, Planes
from sapwood.kernels.triton import quant_few, quant_many, quant_scaled
from sapwood.kernels.triton.quant_round import rounded
from sapwood.kernels.triton.quant_widen import widened

_FEW_TOKENS = 8
_MOST_DECODED = 320
"""Tokens beyond which it is faster to write the weights out as plain ones, for the library's product."""
_MOST_EIGHT = 64
"""Tokens beyond which the library's product of what is rounded is the faster one."""
_ROWS_TO_FILL = 96 * 64
"""Outputs that fill the device, so that inputs need not be cut."""
_LONG = 8192
"""Inputs from which on more warps are worth it."""

_MANY: Mapping[int, tuple[quant_many.Setting, quant_many.Setting]] = {
    32: (quant_many.Setting(128, 32, 128, 4, 3), quant_many.Setting(64, 32, 128, 4, 4, 4)),
    64: (quant_many.Setting(128, 64, 64, 4, 3), quant_many.Setting(64, 64, 128, 4, 3, 4)),
    128: (quant_many.Setting(128, 128, 64, 4, 3), quant_many.Setting(64, 128, 64, 4, 3, 4)),
    _MOST_DECODED: (quant_many.Setting(128, 128, 64, 4, 3), quant_many.Setting(64, 128, 64, 4, 3, 2)),
}
"""Up to so many tokens: for outputs that fill the device, and for fewer."""

_EIGHT: Mapping[int, quant_scaled.Setting] = {
    16: quant_scaled.Setting(64, 16, 256, 4, 4),
    32: quant_scaled.Setting(64, 32, 256, 4, 4),
    64: quant_scaled.Setting(64, 64, 128, 4, 5),
    128: quant_scaled.Setting(64, 128, 128, 4, 4),
    512: quant_scaled.Setting(128, 128, 128, 4, 4),
}
_EIGHT_MOST = quant_scaled.Setting(128, 256, 128, 8, 4)
_BLOCKS: Mapping[int, quant_scaled.Setting] = {
    32: quant_scaled.Setting(64, 32, 128, 4, 6),
    64: quant_scaled.Setting(64, 64, 128, 4, 5),
}
_BLOCKS_MOST = quant_scaled.Setting(64, 128, 128, 4, 4)


def _few(
    x_TI: Tensor,
    weights: Planes,
    bias_O: Tensor | None,
    norm: RmsNorm | None,
    residual_TI: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    cut = few_setting(weights, len(x_TI), gated=activation is not None)
    return quant_few.product(x_TI, weights, bias_O, norm, residual_TI, activation, cut)


def few_setting(weights: Planes, num_tokens: int, *, gated: bool) -> quant_few.Setting:
    long = weights.num_inputs >= _LONG
    if _sums(weights, num_tokens):
        return quant_few.Setting(False, 8, 8, 128, 8, 1) if long else quant_few.Setting(False, 8, 4, 128, 4, 3)
    if num_tokens <= 4 and weights.pair and (long or (num_tokens == 1 and not gated)):
        return quant_few.Setting(True, 16, 8, 128, 8, 3)
    return quant_few.Setting(True, 16, 4, 128, 4, 3)


def _sums(weights: Planes, num_tokens: int) -> bool:
    """Whether multiply-adds are faster than matrix units: codes of four bits take too long without."""
    return num_tokens == 1 and not weights.pair


def few_tokens(weights: Planes) -> int:
    return 0 if weights.rounding is not None else _FEW_TOKENS


def _many(x_TI: Tensor, weights: Planes, bias_O: Tensor | None) -> Tensor:
    if (cut := many_setting(weights, len(x_TI))) is None:
        return F.linear(x_TI, widened(weights, x_TI.dtype), bias_O)
    return quant_many.product(x_TI, weights, bias_O, cut)


def many_setting(weights: Planes, num_tokens: int) -> quant_many.Setting | None:
    """None where weights are better written out."""
    # Short runs of columns leave matrix units little to do.
    if num_tokens > (_MOST_DECODED if weights.slice >= 64 else 64):
        return None
    wide, narrow = next(cuts for most, cuts in _MANY.items() if num_tokens <= most)
    return wide if weights.num_outputs > 2 * _ROWS_TO_FILL else narrow


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
    if scale_GT is not None and dtype == torch.bfloat16 and _library_knows(weights, codes_TI):
        scale = weights.scale_SG if weights.row_O is None else weights.row_O[:, None]
        assert scale is not None
        y_TO = torch._scaled_mm(
            codes_TI, values_OI.t(), scale_a=scale_GT.t(), scale_b=scale.t(), out_dtype=dtype,
            use_fast_accum=weights.row_O is not None,
        )  # fmt: skip
        return y_TO if bias_O is None else y_TO.add_(bias_O)
    row_O = weights.row_O if weights.rounded_O is None else weights.rounded_O
    cut = eight_setting(weights, len(codes_TI))
    return quant_scaled.product(
        codes_TI, scale_GT, values_OI, weights.scale_GS, row_O, bias_O, dtype, cut, weights.arrived
    )


def _library_knows(weights: Planes, codes_TI: Tensor) -> bool:
    """Its products are of float8 in bfloat16, and of scales that it can read in runs of 16 bytes."""
    num_tokens, inputs = codes_TI.shape
    whole = BLOCK if weights.group else 16
    fits = weights.num_outputs % whole == 0 and inputs % whole == 0 and (not weights.group or num_tokens % 4 == 0)
    return num_tokens > _MOST_EIGHT and fits and weights.form == "fp8" and Ability.TMA in abilities_of(codes_TI.device)


def eight_setting(weights: Planes, num_tokens: int) -> quant_scaled.Setting:
    settings, most = (_BLOCKS, _BLOCKS_MOST) if weights.group else (_EIGHT, _EIGHT_MOST)
    cut = next((cut for tokens, cut in settings.items() if num_tokens <= tokens), most)
    if weights.group and num_tokens <= 32:
        # Each turn waits for scales: more programs hide that.
        return cut._replace(parts=4) if weights.num_outputs <= 2 * _ROWS_TO_FILL else cut._replace(rows=128, stages=5)
    if num_tokens <= 128 and weights.num_outputs < _ROWS_TO_FILL:
        return cut._replace(parts=2)
    return cut


QUANTISED = Quantised(few=_few, few_tokens=few_tokens, few_norms=_sums, many=_many, rounded=_rounded, eight=_eight)
