"""Logits of the tokens that a mask leaves; -inf for the others. `sapwood.sampling.masks` holds the twin.

Suffix legend: N rows of logits, M masked ones, V vocabulary, W int32 words of a mask.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels.triton.jit import jit

BLOCK = 4096


@jit(do_not_specialize=["stride", "out_stride", "W", "V"])
def mask_rows(
    logits_NV, stride, places_M, bits_MW, W, out_MV, out_stride, V, GATHER: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (M, ceil(V / BLOCK)). With GATHER row m of the output is row `places_M[m]` of the logits, else that row."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places_M + row)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    # Each word is read by 32 neighbours, from the cache nearest to them.
    word = tl.load(bits_MW + row * W + token // 32, mask=inside, other=0)
    allowed = ((word >> (token % 32)) & 1) != 0
    logit = tl.load(logits_NV + place * stride + token, mask=inside & allowed, other=float("-inf"))
    target = row if GATHER else place
    tl.store(out_MV + target * out_stride + token, logit, mask=inside)


def launch(logits_NV: Tensor, places_M: Tensor, bits_MW: Tensor, out: Tensor, *, gather: bool) -> None:
    """`out` is [M, V] with `gather`, else the logits themselves. `places_M` is int64, `bits_MW` contiguous."""
    assert logits_NV.stride(1) == 1 and out.stride(1) == 1 and bits_MW.is_contiguous()
    vocab = logits_NV.shape[1]
    mask_rows[(len(places_M), triton.cdiv(vocab, BLOCK))](
        logits_NV, logits_NV.stride(0), places_M, bits_MW, bits_MW.shape[1], out, out.stride(0), vocab,
        GATHER=gather, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
