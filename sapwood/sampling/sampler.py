"""Which rows take part in which step, and the steps in their order.

Suffix legend: N rows that yield a token, V vocabulary, S slots, L tokens of a slot, B pairs, K words of a settings
record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.sampling import steps
from sapwood.sampling.fast import draw
from sapwood.sampling.logprobs import Logprobs, logprobs
from sapwood.sampling.masks import restrict
from sapwood.sampling.settings import Need, Settings

Rows = Mapping[Need, Tensor | None]


@dataclass(frozen=True, eq=False)
class Bias:
    """Values to add to the logits of single tokens (float32 [B]) of single rows (int64 [B])."""

    rows_B: Tensor
    ids_B: Tensor
    values_B: Tensor


@dataclass(frozen=True, eq=False)
class Stops:
    """Tokens that end a row before its time."""

    rows_B: Tensor
    ids_B: Tensor


@dataclass(frozen=True, eq=False)
class Recipe:
    """How N rows are sampled; the same for as long as they are the same rows.

    `rows` holds, for each need of which there is one, the rows that have it (int64; None is all). `num_top` is the
    largest number of reported alternatives; `named_NJ` (int64) are the tokens that rows of Need.LOGPROBS name, then 0.
    """

    slots_N: Tensor
    settings: Settings
    rows: Rows
    bias: Bias | None
    stops: Stops | None
    num_top: int
    named_NJ: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Sampled:
    """Tokens (int64 [N]) and, for the rows of Need.LOGPROBS, log probabilities: those before any edit, but with Need.MARKS of what may be drawn. A row whose logits are not finite is
    not `sound`; its token is one of the vocabulary but means nothing."""

    tokens_N: Tensor
    sound_N: Tensor
    logprobs: Logprobs | None


def sample(
    logits_NV: Tensor, recipe: Recipe, positions_N: Tensor, tokens_SL: Tensor, bits_MW: Tensor | None = None
) -> Sampled:
    """Choose the tokens that come to stand at `positions_N` (int64). Float32 logits are used up.

    `tokens_SL` is the token table, cut after the longest row; `bits_MW` the masks of the rows of Need.MASK.
    """
    rows = recipe.rows
    sound_N = logits_NV.amax(-1).isfinite()
    asking = rows.get(Need.LOGPROBS)
    raw = _pick(logits_NV, asking, copy=True) if Need.LOGPROBS in rows else None
    if Need.MASK in rows:
        assert bits_MW is not None
        masked = rows[Need.MASK]
        places_M = torch.arange(len(logits_NV), device=logits_NV.device) if masked is None else masked
        restrict(logits_NV, places_M, bits_MW)
    _edit(logits_NV, recipe, positions_N, tokens_SL)
    if raw is not None and Need.MARKS in rows:
        ruled_N = _pick(recipe.settings["first_mark"], asking) > 0
        raw = torch.where(ruled_N[:, None], _pick(logits_NV, asking), raw)
    tokens_N = _decide(logits_NV, recipe, positions_N)
    sound_N &= tokens_N >= 0
    tokens_N.clamp_(min=0)
    found = None
    if raw is not None:
        found = logprobs(raw, _pick(tokens_N, asking), num_top=recipe.num_top, named_NJ=recipe.named_NJ)
    return Sampled(tokens_N, sound_N, found)


def _edit(logits_NV: Tensor, recipe: Recipe, positions_N: Tensor, tokens_SL: Tensor) -> None:
    """The steps that change logits, greedy rows' too."""
    rows, settings = recipe.rows, recipe.settings
    if recipe.bias is not None:
        steps.add_bias(logits_NV, recipe.bias.rows_B, recipe.bias.ids_B, recipe.bias.values_B)
    if Need.PENALTY in rows:
        some = rows[Need.PENALTY]
        penalised, mine = _pick(logits_NV, some), settings.pick(some)
        steps.penalise(
            penalised,
            tokens_SL.index_select(0, _pick(recipe.slots_N, some)),
            _pick(positions_N, some),
            *(mine[name] for name in ("prompt_len", "repetition", "presence", "frequency")),
        )
        _put(logits_NV, some, penalised)
    if recipe.stops is not None:
        early_B = (positions_N < settings["min_len"]).index_select(0, recipe.stops.rows_B)
        steps.forbid(logits_NV, recipe.stops.rows_B, recipe.stops.ids_B, early_B)
    if Need.MARKS in rows:
        some = rows[Need.MARKS]
        marked = _pick(logits_NV, some)
        steps.prefer_marks(marked, settings.pick(some)["first_mark"])
        _put(logits_NV, some, marked)


def _decide(logits_NV: Tensor, recipe: Recipe, positions_N: Tensor) -> Tensor:
    """The likeliest token of greedy rows, a random one of the others, -1 where the edited logits are not finite."""
    words_NK = recipe.settings.words_NK
    places_N = torch.arange(len(words_NK), dtype=torch.int32, device=words_NK.device)
    drawn_N = torch.empty_like(places_N)
    draw(logits_NV, words_NK, places_N, positions_N.int(), drawn_N)
    return drawn_N.long()


def _pick(x_N: Tensor, rows: Tensor | None, *, copy: bool = False) -> Tensor:
    """A copy of those rows; or all of them, as they are if that will do."""
    if rows is None:
        return x_N.clone() if copy else x_N
    return x_N.index_select(0, rows)


def _put(x_N: Tensor, rows: Tensor | None, some: Tensor) -> None:
    """Put picked rows back; a step on all rows has changed them in place."""
    if rows is not None:
        x_N.index_copy_(0, rows, some)
