"""Recurrences in plain PyTorch, for one row of tokens at a time or one token of many rows: float32, on any device.

Suffix legend: N tokens of one row (or rows of one token), C channels, W width of a convolution, H heads, G groups that
share keys and queries, K size of a key, V size of a value, L tokens of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 64  # tokens that are computed as one product; each block begins with the state of the one before
_FEW = 16  # the same where every number of a state decays by itself, which keeps the states of all of them


def conv(x_NC: Tensor, past_CW: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """A causal convolution of a row's tokens behind the last W - 1 of before: (y_NC, all_CN), where the W - 1 columns
    from i + 1 on of the latter are what token i leaves."""
    all_CN = torch.cat([past_CW, x_NC.T], dim=1)
    y_CN = F.conv1d(all_CN[None], weight_CW[:, None], bias_C, groups=len(weight_CW))[0]
    return y_CN.T, all_CN


def scan(
    q_NHK: Tensor, k_NHK: Tensor, v_NHV: Tensor, decay_NH: Tensor, beta_NH: Tensor | None, state_HKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens of a row, block by block: (y_NHV, the state behind the last).

    With S' = exp(decay) S it is S'' = S' + k u and y = q S'', where u = v, or with a `beta` u = beta (v - k S'): what was
    kept under a key is replaced and not added to (the gated delta rule, Yang et al., 2024). A decay of [N, H, K] is one of
    each number of a key, and goes with no beta.
    """
    outputs, keyed = [], decay_NH.dim() == 3
    assert not keyed or beta_NH is None
    for first in range(0, len(q_NHK), size := _FEW if keyed else _BLOCK):
        part = slice(first, first + size)
        q_HLK, k_HLK, v_HLV, decay_HL = (x[part].transpose(0, 1) for x in (q_NHK, k_NHK, v_NHV, decay_NH))
        if keyed:
            y_HLV, state_HKV = _block_of_keys(q_HLK, k_HLK, v_HLV, decay_HL, state_HKV)
        else:
            beta_HL = None if beta_NH is None else beta_NH[part].T
            y_HLV, state_HKV = _block(q_HLK, k_HLK, v_HLV, decay_HL, beta_HL, state_HKV)
        outputs.append(y_HLV.transpose(0, 1))
    return torch.cat(outputs), state_HKV


def _block_of_keys(
    q_HLK: Tensor, k_HLK: Tensor, v_HLV: Tensor, decay_HLK: Tensor, state_HKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Each token's sum over those before it, from sums over 1, 2, 4 of them."""
    since_HLK1 = decay_HLK.exp()[..., None]
    states_HLKV = k_HLK[..., None] * v_HLV[:, :, None]
    step = 1
    while step < q_HLK.shape[1]:
        states_HLKV[:, step:] += since_HLK1[:, step:] * states_HLKV[:, :-step].clone()
        since_HLK1[:, step:] *= since_HLK1[:, :-step].clone()
        step *= 2
    states_HLKV = states_HLKV + since_HLK1 * state_HKV[:, None]
    return torch.einsum("hlk,hlkv->hlv", q_HLK, states_HLKV), states_HLKV[:, -1]


def _block(
    q_HLK: Tensor, k_HLK: Tensor, v_HLV: Tensor, decay_HL: Tensor, beta_HL: Tensor | None, state_HKV: Tensor
) -> tuple[Tensor, Tensor]:
    grown_HL = decay_HL.cumsum(1)
    length = grown_HL.shape[1]
    seen_LL = torch.ones(length, length, dtype=torch.bool, device=q_HLK.device).tril()
    # exp of the decay between two tokens, 0 where the second comes first; a difference never overflows.
    between_HLL = (grown_HL[:, :, None] - grown_HL[:, None, :]).masked_fill(~seen_LL, float("-inf")).exp()
    since_HL1 = grown_HL.exp()[:, :, None]
    if beta_HL is not None:
        mixed_HLL = (k_HLK @ k_HLK.transpose(1, 2)) * between_HLL * beta_HL[:, :, None]
        wanted_HLV = beta_HL[:, :, None] * (v_HLV - since_HL1 * (k_HLK @ state_HKV))
        # Each token's u wants those of the tokens before it: a triangle with ones on its diagonal.
        v_HLV = torch.linalg.solve_triangular(mixed_HLL.tril(-1), wanted_HLV, upper=False, unitriangular=True)
    y_HLV = since_HL1 * (q_HLK @ state_HKV) + ((q_HLK @ k_HLK.transpose(1, 2)) * between_HLL) @ v_HLV
    left_HL1 = between_HLL[:, -1, :, None]
    state_HKV = since_HL1[:, -1:] * state_HKV + (left_HL1 * k_HLK).transpose(1, 2) @ v_HLV
    return y_HLV, state_HKV


def advance(
    q_NHK: Tensor, k_NHK: Tensor, v_NHV: Tensor, decay_NH: Tensor, beta_NH: Tensor | None, states_NHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of one token of each of N rows: (y_NHV, the states behind them)."""
    states_NHKV = states_NHKV * decay_NH.exp().view(*decay_NH.shape, *[1] * (4 - decay_NH.dim()))
    if beta_NH is not None:
        kept_NHV = torch.einsum("nhk,nhkv->nhv", k_NHK, states_NHKV)
        v_NHV = beta_NH[:, :, None] * (v_NHV - kept_NHV)
    states_NHKV = states_NHKV + k_NHK[..., None] * v_NHV[:, :, None]
    return torch.einsum("nhk,nhkv->nhv", q_NHK, states_NHKV), states_NHKV
