"""Sampling of one row, slow and obvious, in numpy float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.base.sampling import SamplingParams

Floats = NDArray[np.float64]


def edited(
    logits: NDArray[Any],
    params: SamplingParams,
    *,
    tokens: Sequence[int],
    prompt_len: int,
    min_len: int = 0,
    stop_ids: Sequence[int] = (),
) -> Floats:
    """Logits after bias, penalties and min_tokens, of the token that follows `tokens`."""
    out = logits.astype(np.float64)
    for token, bias in params.logit_bias.items():
        out[token] += bias
    for token in set(tokens):
        out[token] = (
            out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
        )
    for token in tokens[prompt_len:]:
        out[token] -= params.frequency_penalty
    for token in set(tokens[prompt_len:]):
        out[token] -= params.presence_penalty
    if len(tokens) < min_len:
        out[list(stop_ids)] = -np.inf
    return out


def weights(logits: Floats, params: SamplingParams) -> Floats:
    """Unnormalised probabilities after temperature, top-k, top-p and min-p. Of equals, lower ids come first."""
    out = np.exp((logits - logits.max()) / params.temperature)
    order = np.argsort(-out, kind="stable")
    if params.top_k > 0:
        out[order[params.top_k :]] = 0.0
    if params.top_p < 1.0:
        reached = np.cumsum(out[order])
        out[order[np.searchsorted(reached, params.top_p * out.sum()) + 1 :]] = 0.0
    out[out < params.min_p] = 0.0
    return out


def uniform(seed: int, position: int) -> float:
    """The same SplitMix64 stream in Python integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    return (mix((mix(seed % 2**64) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 24) / 2**40


def choice(kept: Floats, number: float) -> int:
    """The token at which the sum of the weights passes that share of the whole."""
    return int(np.searchsorted(np.cumsum(kept), number * kept.sum(), side="right"))
