"""Attention among the tokens of whole texts, which keeps nothing: by PyTorch's fused kernels, texts of a length in one call.

Suffix legend: T tokens of the step, R texts of a length, N their length, H query heads, K KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.attention.base import Batch
from sapwood.base.kv import KVGroup, Whole
from sapwood.kernels import NormRope, plain


@dataclass(frozen=True, eq=False)
class _Texts:
    """Their tokens in the step, a run of them if it is one text; `mask`, where there is one, hides those outside of a window, or is
    added to scores."""

    number: int
    length: int
    tokens: Tensor | slice
    mask: Tensor | None


class WholeTexts:
    """Padding is nowhere: a length that no other text has is a call of its own."""

    name = "sdpa-whole"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        assert isinstance(group.kind, Whole), "chosen by kind"
        self._kind, self._device, self._dtype = group.kind, device, dtype
        self._texts: list[_Texts] = []
        self.relative_HP: Tensor | None = (
            None  # what scores have more of keys P // 2 positions before a query to as many behind it
        )

    def allocate(self, num_pages: int) -> None:
        """Pages are counted and not held."""

    def pools(self) -> Sequence[Tensor]:
        return ()

    def plan(self, batch: Batch) -> None:
        offsets, lengths = batch.offsets_R1.tolist(), batch.counts_R.tolist()
        firsts: dict[int, list[int]] = {}
        for first, length in zip(offsets, lengths, strict=False):
            if length:
                firsts.setdefault(length, []).append(first)
        self._texts = [self._of(length, starts) for length, starts in firsts.items()]

    def _of(self, length: int, firsts: list[int]) -> _Texts:
        places_N = torch.arange(length, device=self._device)
        window, seen_NN = self._kind.window, None
        if window is not None and length > window + 1:
            seen_NN = (places_N[:, None] - places_N).abs() <= window
        if self.relative_HP is not None:
            assert window is None, "relative scores come without windows"
            longest = self.relative_HP.shape[1] // 2
            seen_NN = self.relative_HP[:, (places_N - places_N[:, None]).clamp(-longest, longest) + longest]
            seen_NN = seen_NN.to(self._dtype)
        if len(firsts) == 1:
            return _Texts(1, length, slice(firsts[0], firsts[0] + length), seen_NN)
        tokens_RN = torch.tensor(firsts, device=self._device)[:, None] + places_N
        return _Texts(len(firsts), length, tokens_RN.flatten(), seen_NN)

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float) -> Tensor:
        """As `HeadsBackend.run`, but that every token sees all of its text, or of its window."""
        kind = self._kind
        num_qk = kind.num_heads + kind.num_kv_heads
        turned_TND = plain.placed(heads_TXD[:, :num_qk], rope)
        q_THD, k_TKD, v_TKD = turned_TND[:, : kind.num_heads], turned_TND[:, kind.num_heads :], heads_TXD[:, num_qk:]
        out_THD = torch.zeros_like(q_THD)
        for texts in self._texts:
            shape = (texts.number, texts.length)
            q, k, v = (x[texts.tokens].unflatten(0, shape).transpose(1, 2) for x in (q_THD, k_TKD, v_TKD))
            grouped = kind.num_heads != kind.num_kv_heads
            out_RHND = F.scaled_dot_product_attention(q, k, v, attn_mask=texts.mask, scale=scale, enable_gqa=grouped)
            out_THD[texts.tokens] = out_RHND.transpose(1, 2).flatten(0, 1)
        return out_THD
