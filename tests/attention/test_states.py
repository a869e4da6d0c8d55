"""What states become: token by token, and in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapwood.kernels import recurrent

HEADS, GROUPS, KEY, VALUE = 4, 2, 12, 20


def scanned(tokens: int, *, beta: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, values, decays and betas."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    q_TGK, k_TGK = draw(tokens, GROUPS, KEY), torch.nn.functional.normalize(draw(tokens, GROUPS, KEY), dim=-1)
    decay_TH, beta_TH = -draw(tokens, HEADS).abs() * 0.3, draw(tokens, HEADS).sigmoid()
    return q_TGK, k_TGK, draw(tokens, HEADS, VALUE), decay_TH, beta_TH if beta else None


@pytest.mark.parametrize("beta", [False, True])
def test_blocks_are_what_single_tokens_come_to(beta: bool) -> None:
    q_TGK, k_TGK, v_THV, decay_TH, beta_TH = scanned(150, beta=beta)
    q_NHK, k_NHK = q_TGK.repeat_interleave(2, dim=1), k_TGK.repeat_interleave(2, dim=1)
    state_HKV = torch.randn(HEADS, KEY, VALUE, generator=torch.Generator().manual_seed(0))
    found_NHV, left_HKV = recurrent.scan(q_NHK, k_NHK, v_THV, decay_TH, beta_TH, state_HKV)
    for t in range(len(q_NHK)):
        one = slice(t, t + 1)
        betas = None if beta_TH is None else beta_TH[one]
        y_NHV, states = recurrent.advance(q_NHK[one], k_NHK[one], v_THV[one], decay_TH[one], betas, state_HKV[None])
        state_HKV = states[0]
        torch.testing.assert_close(found_NHV[t], y_NHV[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left_HKV, state_HKV, atol=1e-4, rtol=1e-4)
