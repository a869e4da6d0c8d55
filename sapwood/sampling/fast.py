"""Tokens straight from logits, for rows whose logits need no edit: what nearly all requests ask for.

Suffix legend: N rows, V vocabulary, S slots, K int32 words of a record.
"""

from __future__ import annotations

from torch import Tensor

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of
from sapwood.sampling.rows import draw_by_rows
from sapwood.sampling.settings import WORDS, Need

FAST = Need.RANDOM | Need.TOP_K | Need.TOP_P | Need.MIN_P
"""The needs that `draw` fulfils."""


def draw(logits_NV: Tensor, settings_SK: Tensor, slots_N: Tensor, positions_N: Tensor, out_N: Tensor) -> None:
    """Write the token (int32) that comes to stand at `positions_N` (int32) to `out_N`, or -1 where the largest logit of
    a row is not finite or a logit is no number.

    Logits are bfloat16, float16 or float32 and stay as they are. `settings_SK` are packed records, addressed by
    `slots_N` (int32); what they hold beyond the needs of FAST is ignored. Rows with temperature 0 or top_k 1 are greedy:
    the lowest id among the largest logits. On CUDA this neither waits for the device nor depends on values on the host,
    so a graph may hold it.
    """
    if Ability.TRITON in abilities_of(logits_NV.device):
        from sapwood.kernels.triton.sample import draw as launch

        launch(logits_NV, settings_SK, slots_N, positions_N, out_N, WORDS)
    else:
        draw_by_rows(logits_NV, settings_SK, slots_N, positions_N, out_N)
