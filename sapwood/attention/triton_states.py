"""States of recurrences on CUDA devices with the kernels of `sapwood.kernels.triton.states`, where the reference keeps them.

Nothing of a step is asked on the host, so that it may be captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.attention.base import Batch, rows_of
from sapwood.attention.states import States, state_of
from sapwood.base.kv import KVGroup
from sapwood.kernels.triton import states


class TritonStates(States):
    """One group's states."""

    name = "triton-states"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        wide = max((shape[-1] + 1 for shape in state_of(group).shapes if len(shape) == 2), default=0)
        if wide > states.WIDEST:
            return f"its convolutions are at most {states.WIDEST} wide, and the model's are {wide}"
        return None

    def plan(self, batch: Batch) -> None:
        rows_T = rows_of(batch.offsets_R1, len(batch.ids_T)).clamp_(max=len(batch.slots_R) - 1).int()
        self._all = states.Rows(
            rows_T, batch.offsets_R1, batch.starts_R, batch.counts_R, batch.heads_R,
            batch.slots_R, batch.tables_GSP[self._index], self._group.page_size, self._group.cells,
        )  # fmt: skip

    def conv(self, layer: int, index: int, x_TC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
        return states.conv(self._all, self._kept[index][layer], x_TC, weight_CW, bias_C)

    def scan(
        self,
        layer: int,
        index: int,
        q_TGK: Tensor,
        k_TGK: Tensor,
        v_THV: Tensor,
        decay_TH: Tensor,
        beta_TH: Tensor | None = None,
    ) -> Tensor:
        return states.scan(self._all, self._kept[index][layer], q_TGK, k_TGK, v_THV, decay_TH, beta_TH)
