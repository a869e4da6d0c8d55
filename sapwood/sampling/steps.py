"""The steps that edit logits, in place, before a token is drawn from them. Each is a function on the rows that need it, and
none waits for the device.

Suffix legend: N rows, V vocabulary, L tokens of a history, B pairs of row and token id.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ELEMENTS = 1 << 24  # most elements at a time of a step that needs much memory for each


def add_bias(logits_NV: Tensor, rows_B: Tensor, ids_B: Tensor, values_B: Tensor) -> None:
    """Add values to single logits; a pair of row and id occurs once."""
    logits_NV[rows_B, ids_B] += values_B


def penalise(
    logits_NV: Tensor,
    history_NL: Tensor,
    lengths_N: Tensor,
    prompt_lens_N: Tensor,
    repetition_N: Tensor,
    presence_N: Tensor,
    frequency_N: Tensor,
) -> None:
    """Make tokens that occurred less likely; what stands at or after `lengths` is not read.

    Repetition looks at prompt and output, presence and frequency at the output.
    """
    rows = _bounded(logits_NV, history_NL, lengths_N, prompt_lens_N, repetition_N, presence_N, frequency_N)
    for logits, history, lengths, prompt_lens, repetition, presence, frequency in rows:
        places_L = torch.arange(history.shape[1], device=history.device)
        # Unknown places repeat the first token, which is known; a token that stands twice is written the same twice.
        ids_NL = torch.where(places_L < lengths[:, None], history, history[:, :1]).long()
        output_NL = (places_L < lengths[:, None]) & (places_L >= prompt_lens[:, None])
        counts_NV = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
        counts_NL = counts_NV.scatter_add_(1, ids_NL, output_NL.int()).gather(1, ids_NL)
        old_NL = logits.gather(1, ids_NL)
        new_NL = torch.where(old_NL > 0, old_NL / repetition[:, None], old_NL * repetition[:, None])
        new_NL -= frequency[:, None] * counts_NL + presence[:, None] * (counts_NL > 0)
        logits.scatter_(1, ids_NL, new_NL)


def forbid(logits_NV: Tensor, rows_B: Tensor, ids_B: Tensor, active_B: Tensor) -> None:
    """Make single tokens impossible where `active`."""
    logits_NV[rows_B, ids_B] = logits_NV[rows_B, ids_B].masked_fill(active_B, -torch.inf)


def prefer_marks(logits_NV: Tensor, first_N: Tensor) -> None:
    """Make all other tokens impossible where the marks of time, the tokens from `first` (int32) on, are together likelier than
    any single one of them: that a mark follows is then more certain than which."""
    for logits, first in _bounded(logits_NV, first_N):
        marks = torch.arange(logits.shape[1], device=logits.device) >= first[:, None]
        together = logits.masked_fill(~marks, -torch.inf).logsumexp(-1)
        best = logits.masked_fill(marks, -torch.inf).amax(-1)
        logits.masked_fill_((together > best)[:, None] & ~marks, -torch.inf)


def _bounded(*tensors_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of all of them, as many rows at a time as a step with much to remember may have."""
    num_rows = max(1, _ELEMENTS // max(x_N[:1].numel() for x_N in tensors_N))
    return zip(*(x_N.split(num_rows) for x_N in tensors_N), strict=True)
