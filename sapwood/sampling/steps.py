"""The steps of sampling. Each is a function on the rows that need it, and none waits for the device.

The first ones edit logits in place. From `soften` on, rows are weights: probabilities times a constant, the likeliest
token at 1. A step that drops a token sets its weight to 0. Of tokens that are equally likely, those with the lower ids
are kept first, so what is kept never depends on how it was found.

Suffix legend: N rows, V vocabulary, L tokens of a history, B pairs of row and token id, C candidates, X blocks of Y.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 512  # a nucleus is mostly among them, and they are found fast
_ELEMENTS = 1 << 24  # most elements at a time of a step that needs much memory for each (up to 32 bytes)
_MASS = 2.0**40  # of weight 1, as an integer: fine enough for any probability, and 2**23 of them do not overflow
_BLOCK = 128


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


def soften(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """Turn logits into weights at a temperature, in place."""
    return logits_NV.sub_(logits_NV.amax(-1, keepdim=True)).div_(temperature_N[:, None]).exp_()


def top_k(weights_NV: Tensor, k_N: Tensor, *, max_k: int) -> None:
    """Keep the k likeliest tokens. `max_k` is at least every k, as the host knows it."""
    best_NC = weights_NV.topk(min(max_k, weights_NV.shape[-1])).values
    _keep(weights_NV, best_NC, k_N.long().clamp(max=best_NC.shape[-1]))


def top_p(weights_NV: Tensor, p_N: Tensor, *, num_candidates: int = CANDIDATES) -> None:
    """Keep the fewest likeliest tokens that together have probability p.

    On a CPU a few candidates are tried first. To know which rows need more would mean to wait for a GPU.
    """
    if weights_NV.is_cuda or num_candidates >= weights_NV.shape[-1]:
        return _keep_mass(weights_NV, p_N)
    best_NC = weights_NV.topk(num_candidates).values
    target_N1 = (weights_NV.sum(-1, dtype=torch.float64) * p_N)[:, None]
    reached_NC = best_NC.cumsum(-1, dtype=torch.float64) >= target_N1
    rest = (~reached_NC[:, -1]).nonzero().squeeze(-1)
    weights = weights_NV[rest]
    _keep(weights_NV, best_NC, (~reached_NC).sum(-1).add_(1).clamp_(max=num_candidates))
    if len(rest):
        _keep_mass(weights, p_N[rest])
        weights_NV[rest] = weights


def min_p(weights_NV: Tensor, min_p_N: Tensor) -> None:
    """Drop tokens less likely than a share of the likeliest, whose weight is 1."""
    weights_NV.masked_fill_(weights_NV < min_p_N[:, None], 0.0)


def choose(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The token (int64 [N]) at which the sum of the weights, in the order of ids, passes `uniform` of the whole.

    First the block of tokens is found, then the token in it. Beyond a block sums are float64, so that the order in
    which a device adds makes no difference that counts.
    """
    missing = -weights_NV.shape[-1] % _BLOCK
    padded_NV = F.pad(weights_NV, (0, missing)) if missing else weights_NV
    weights_NXY = padded_NV.unflatten(-1, (-1, _BLOCK))
    ends_NX = weights_NXY.sum(-1).cumsum(-1, dtype=torch.float64)
    target_N1 = ends_NX[:, -1:] * uniform_N[:, None]
    block_N1 = _passes(ends_NX, target_N1)
    before_N1 = F.pad(ends_NX, (1, 0)).gather(-1, block_N1)

    index_N1Y = block_N1[:, :, None].expand(-1, -1, _BLOCK)
    ends_NY = weights_NXY.gather(1, index_N1Y).squeeze(1).cumsum(-1, dtype=torch.float64)
    # Two ways to add the same block differ in the last bits: stay below its end, where only zeros follow.
    rest_N1 = torch.minimum(target_N1 - before_N1, ends_NY[:, -1:] * (1 - 2.0**-50))
    # Weights that are no numbers lead into the padding; their row is given up, but must not point outside of a table.
    return (block_N1 * _BLOCK + _passes(ends_NY, rest_N1)).squeeze(-1).clamp_(max=weights_NV.shape[-1] - 1)


def _passes(ends_NX: Tensor, target_N1: Tensor) -> Tensor:
    """Index of the first end beyond the target."""
    return torch.searchsorted(ends_NX, target_N1, right=True).clamp_(max=ends_NX.shape[-1] - 1)


def _keep(weights_NV: Tensor, best_NC: Tensor, num_N: Tensor) -> None:
    """Keep the `num` likeliest, whose weights are the first `num` of the descending `best_NC`."""
    floor_N1 = best_NC.gather(-1, num_N[:, None] - 1)
    _cut(weights_NV, floor_N1, num_N[:, None] - (best_NC > floor_N1).sum(-1, keepdim=True))


def _keep_mass(weights_NV: Tensor, p_N: Tensor) -> None:
    """Keep the fewest likeliest tokens that together have probability p, however many they are, without a sort.

    The least weight that is kept is found digit by digit: non-negative floats are ordered as their bits are, and those
    of weights up to 1 are three digits of 10. Masses are integers, so that the order of adding cannot matter.
    """
    for weights, p_N1 in _bounded(weights_NV, p_N[:, None]):
        bits = weights.view(torch.int32)
        mass = (weights * _MASS).long()
        rest_N1 = (mass.sum(-1, keepdim=True) * p_N1.double()).ceil().long()  # to be found below what is kept for sure
        found_N1 = torch.zeros_like(rest_N1)
        for shift in (20, 10, 0):
            digits = ((bits >> shift) & 1023).long()
            alike = mass * ((bits >> shift + 10) == found_N1)
            masses_ND = mass.new_zeros(len(mass), 1024).scatter_add_(1, digits, alike)
            from_top_ND = masses_ND.flip(-1).cumsum(-1).flip(-1)
            digit_N1 = (from_top_ND >= rest_N1).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
            rest_N1 -= (from_top_ND - masses_ND).gather(-1, digit_N1)
            found_N1 = found_N1 << 10 | digit_N1
        floor_N1 = found_N1.int().view(torch.float32)
        mass_N1 = (floor_N1 * _MASS).long().clamp_(min=1)
        _cut(weights, floor_N1, (rest_N1 + mass_N1 - 1) // mass_N1)


def _cut(weights_NV: Tensor, floor_N1: Tensor, num_equal_N1: Tensor) -> None:
    """Drop what is below the floor, and of what is equal to it all but the first few."""
    for weights, floor, num_equal in _bounded(weights_NV, floor_N1, num_equal_N1):
        equal = weights == floor
        weights.masked_fill_((weights < floor) | (equal & (equal.cumsum(-1, dtype=torch.int32) > num_equal)), 0.0)


def _bounded(*tensors_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of all of them, as many rows at a time as a step with much to remember may have."""
    num_rows = max(1, _ELEMENTS // max(x_N[:1].numel() for x_N in tensors_N))
    return zip(*(x_N.split(num_rows) for x_N in tensors_N), strict=True)
