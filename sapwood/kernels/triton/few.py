"""The product of few tokens with a large matrix, which is bound by how fast the matrix can be read.

Each program reads whole rows of weight_OI and carries the neighbours of the product: an RMS norm (with the sum that
it norms) before, a bias and a gated activation after. The norm's factor is one number per token, so it is applied to
the product: y = factor * W(gain * h), and the squares are summed while the rows go by.

Suffix legend: T tokens, I inputs, O outputs (of a gated product: half of the weight's rows).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.triton import pdl
from sapwood.kernels.triton.jit import jit

FEW = 16
"""Most tokens for which this beats a general matrix product."""
_CHUNK, _MOST_CHUNKS = 256, 128


class Setting(NamedTuple):
    """How a product is cut: programs of so many rows and warps, which keep `stages` tiles of `depth` columns coming.

    `dot`: by tensor cores, on tokens padded to 16 or more; else by multiply-adds, for one token.
    """

    dot: bool
    rows: int
    depth: int
    warps: int
    stages: int


_SETTINGS: dict[tuple[int, int], dict[int, Setting]] = {
    # llama-8b: qkv, out, gate and up, down, head
    (6144, 4096): {1: Setting(False, 8, 1024, 8, 1), 16: Setting(True, 64, 128, 4, 5)},
    (4096, 4096): {1: Setting(False, 8, 1024, 8, 1), 16: Setting(True, 64, 128, 4, 5)},
    (28672, 4096): {16: Setting(True, 64, 128, 4, 5)},
    (4096, 14336): {1: Setting(False, 16, 256, 4, 4), 16: Setting(True, 32, 256, 4, 5)},
    (128256, 4096): {1: Setting(False, 8, 512, 4, 1), 16: Setting(True, 64, 128, 4, 3)},
    # qwen3-0.6b: the same
    (4096, 1024): {1: Setting(False, 8, 512, 4, 3), 16: Setting(True, 64, 128, 4, 5)},
    (1024, 2048): {1: Setting(False, 8, 512, 4, 1), 16: Setting(True, 64, 128, 4, 5)},
    (6144, 1024): {1: Setting(False, 16, 256, 4, 4), 16: Setting(True, 64, 128, 4, 5)},
    (1024, 3072): {1: Setting(False, 8, 1024, 8, 1), 16: Setting(True, 64, 128, 4, 5)},
    (151936, 1024): {16: Setting(True, 64, 128, 4, 5)},
}
"""The best settings found by `bench/linear.py --sweep` on an H100: {(rows, columns of the weight): {up to so many
tokens: setting}}."""


def setting(shape: tuple[int, int], outputs: int, num_tokens: int) -> Setting:
    """The setting for a weight of this shape, which yields so many outputs."""
    for most, found in _SETTINGS.get(shape, {}).items():
        if num_tokens <= most:
            return found
    # What was best, or nearly, for all shapes above.
    if num_tokens == 1 and outputs <= 1 << 14:
        return Setting(False, 8, min(512, triton.next_power_of_2(shape[1])), 4, 3)
    return Setting(True, 64, 128, 4, 5)


@jit(do_not_specialize=["T"])
def _product(
    x_TI,
    x_stride,
    residual_TI,
    residual_stride,
    gain_I,
    eps,
    weight_OI,
    bias_O,
    out_TO,
    sum_TI,
    T,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
    CHUNKS: tl.constexpr,
    T_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    SHARE: tl.constexpr,
):
    """Grid (ceil(OUT / ROWS),)."""
    program = tl.program_id(0)
    t_T = tl.arange(0, T_PAD)
    o_O = program * ROWS + tl.arange(0, ROWS)
    row_O = tl.minimum(o_O, OUT - 1).to(tl.int64)
    if PDL:
        if CHUNKS:
            prefetch(weight_OI, program, IN, OUT, ROWS, CHUNKS)
            if GATED:
                prefetch(weight_OI + OUT * IN, program, IN, OUT, ROWS, CHUNKS)
        pdl.join()

    if DOT:
        acc = tl.zeros([ROWS, T_PAD], tl.float32)
        other = tl.zeros([ROWS, T_PAD], tl.float32)
    else:
        acc = tl.zeros([ROWS, DEPTH], tl.float32)
        other = tl.zeros([ROWS, DEPTH], tl.float32)
    squares_TI = tl.zeros([T_PAD, DEPTH], tl.float32)
    for start in tl.range(0, IN, DEPTH, num_stages=STAGES):
        i_I = start + tl.arange(0, DEPTH)
        x = _input(x_TI, x_stride, residual_TI, residual_stride, t_T, i_I, T, IN, IN % DEPTH != 0)
        if gain_I is not None:
            h = x.to(tl.float32)
            squares_TI += h * h
            if IN % DEPTH == 0:
                gain = tl.load(gain_I + i_I)
            else:
                gain = tl.load(gain_I + i_I, mask=i_I < IN, other=0.0)
            x = (h * gain[None, :]).to(x.dtype)
        acc = _accumulate(acc, x, weight_OI, row_O, i_I, IN, DOT, IN % DEPTH != 0)
        if GATED:
            other = _accumulate(other, x, weight_OI, row_O + OUT, i_I, IN, DOT, IN % DEPTH != 0)

    if not DOT:
        acc = tl.sum(acc, axis=1, keep_dims=True)
        other = tl.sum(other, axis=1, keep_dims=True)
    if gain_I is not None:
        factor_T = tl.rsqrt(tl.sum(squares_TI, axis=1) / IN + eps)
        acc = acc * factor_T[None, :]
        other = other * factor_T[None, :]
    if bias_O is not None:
        acc += tl.load(bias_O + row_O).to(tl.float32)[:, None]
        if GATED:
            other += tl.load(bias_O + OUT + row_O).to(tl.float32)[:, None]
    if GATED:
        # (1 + tanh(u)) / 2 = sigmoid(2 u), so both activations are the gate times a sigmoid.
        slope = acc if SILU else 1.5957691216057308 * (acc + 0.044715 * acc * acc * acc)
        acc = acc * other / (1.0 + tl.exp(-slope))
    place = out_TO + t_T[None, :].to(tl.int64) * OUT + o_O[:, None]
    tl.store(place, acc.to(out_TO.dtype.element_ty), mask=(t_T[None, :] < T) & (o_O[:, None] < OUT))

    if residual_TI is not None:
        # The sum, a share of the columns from each program.
        i_I = program * SHARE + tl.arange(0, SHARE)
        total = _input(x_TI, x_stride, residual_TI, residual_stride, t_T, i_I, T, IN, True)
        tl.store(sum_TI + t_T[:, None] * IN + i_I[None, :], total, mask=(t_T < T)[:, None] & (i_I < IN)[None, :])


@jit
def _input(x_TI, x_stride, residual_TI, residual_stride, t_T, i_I, T, IN: tl.constexpr, RAGGED: tl.constexpr):
    """x, or x + residual rounded to their dtype; zero beyond T and, if it may reach there, beyond IN."""
    inside = (t_T < T)[:, None]
    if RAGGED:
        inside = inside & (i_I < IN)[None, :]
    x = tl.load(x_TI + t_T[:, None] * x_stride + i_I[None, :], mask=inside, other=0.0)
    if residual_TI is not None:
        residual = tl.load(residual_TI + t_T[:, None] * residual_stride + i_I[None, :], mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    return x


@jit
def _accumulate(acc, x, weight_OI, row_O, i_I, IN: tl.constexpr, DOT: tl.constexpr, RAGGED: tl.constexpr):
    """Add the products with one tile of the weight: their sums with DOT, else each to its own place."""
    place = weight_OI + row_O[:, None] * IN + i_I[None, :]
    if RAGGED:
        weight = tl.load(place, mask=(i_I < IN)[None, :], other=0.0)
    else:
        weight = tl.load(place)
    if DOT:
        return tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
    else:
        return acc + weight.to(tl.float32) * x.to(tl.float32)


@jit
def prefetch(weight_OI, program, IN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr):
    """Bring the first CHUNKS times 256 bytes of each of the program's rows into the L2 cache."""
    c = tl.arange(0, ROWS * CHUNKS)
    row = tl.minimum(program * ROWS + c // CHUNKS, OUT - 1).to(tl.int64)
    address = (weight_OI + row * IN).to(tl.int64) + (c % CHUNKS) * 256
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], 256; mov.b32 $0, 0; }",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def chunks(num_rows: int, row_bytes: int) -> int:
    """Chunks of each row to prefetch: up to 32 KiB for each program, in rows of whole chunks."""
    fits = min(_MOST_CHUNKS // num_rows, row_bytes // _CHUNK)
    return 1 << fits.bit_length() - 1 if fits and row_bytes % 16 == 0 else 0


def product(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    norm: RmsNorm | None,
    residual_TI: Tensor | None,
    activation: Activation | None,
    cut: Setting | None = None,
) -> tuple[Tensor, Tensor]:
    """`Kernels.linear` in one launch, for at most a few tokens."""
    num_tokens, inputs = x_TI.shape
    rows = weight_OI.shape[0]
    outputs = rows if activation is None else rows // 2
    cut = cut or setting((rows, inputs), outputs, num_tokens)
    assert cut.dot or num_tokens <= 1
    early = pdl.supported(x_TI.device)
    out_TO = torch.empty((num_tokens, outputs), dtype=x_TI.dtype, device=x_TI.device)
    sum_TI = x_TI if residual_TI is None else torch.empty_like(x_TI, memory_format=torch.contiguous_format)
    gain_I, eps = (None, 0.0) if norm is None else norm
    num_programs = triton.cdiv(outputs, cut.rows)
    _product[(num_programs,)](
        x_TI, x_TI.stride(0), residual_TI, 0 if residual_TI is None else residual_TI.stride(0), gain_I, eps,
        weight_OI, bias_O, out_TO, sum_TI, num_tokens,
        IN=inputs, OUT=outputs, GATED=activation is not None, SILU=activation == "silu", DOT=cut.dot, PDL=early,
        CHUNKS=chunks(cut.rows, inputs * weight_OI.itemsize), T_PAD=max(16 if cut.dot else 1, triton.next_power_of_2(num_tokens)),
        ROWS=cut.rows, DEPTH=cut.depth, STAGES=cut.stages,
        SHARE=triton.next_power_of_2(triton.cdiv(inputs, num_programs)), num_warps=cut.warps, launch_pdl=early,
    )  # fmt: skip
    return out_TO, sum_TI
