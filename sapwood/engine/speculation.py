"""Drafters as the configuration wants them: put together once the model is there and its steps have been timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sapwood.arch.foreign import Foreign
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.arch.shard import shard
from sapwood.base.slots import Slots
from sapwood.base.trial import Trial
from sapwood.cache import KVCache, Paths
from sapwood.catalogue import Catalogue
from sapwood.config import Config
from sapwood.config.facts import ModelShape
from sapwood.config.resolve import Decision
from sapwood.config.shape import shape_of
from sapwood.config.speculation import MODEL, MTP, asks_for, drafters
from sapwood.draft import Adaptive, Costs, Drafter, DraftStake, Line, Lookup, OnDevice, Passes, Predictions, Tree
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor
from sapwood.hub.draft import DraftModel, find_draft, own_head
from sapwood.hub.files import ModelFiles
from sapwood.hub.pull import Progress

_SIZES = (1, 2, 4, 8, 16, 17, 32, 33, 64, 65, 128, 129, 256)
"""Tokens of the steps that are timed. Where steps are padded, one more than a power of two is the next size."""
_LONG = 4096  # positions before a row whose reading is timed
_PASSES = 4  # of a draft model that are timed together
_SECONDS = 1.0  # after which no larger steps are timed, nor long ones again


class Speculation(NamedTuple):
    """Who drafts, if anybody does, and what was found of the device."""

    stakes: tuple[DraftStake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    decisions: tuple[Decision, ...] = ()


def draft_of(
    config: Config,
    decoder: Decoder | Foreign,
    files: ModelFiles,
    catalogue: Catalogue,
    *,
    weights: bool = True,
    progress: Progress | None = None,
) -> DraftModel | None:
    """The model that the configuration wants to draft, if it does. Raises UserError."""
    weights = weights and config.model.load_format != "dummy"
    if asks_for(config, MTP):
        return own_head(decoder, files, weights=weights)
    if (model := config.speculation.speculative_model) is None:
        return None
    families, methods = catalogue.families, catalogue.methods
    return find_draft(model, decoder, files, families=families, methods=methods, weights=weights, progress=progress)


def shape_beside(decoder: Network, files: ModelFiles, draft: DraftModel | None, config: Config) -> ModelShape:
    """What `resolve` has to know of a model, and of the one that drafts for it; a head in the model's own files is counted with these.
    Of several ranks it is what the first one has."""
    ranks = config.parallel.tensor_parallel_size or 1

    def of_rank(one: Network) -> Network:
        return shard(one, rank=0, size=ranks) if isinstance(one, Decoder) else one

    beside = None
    if draft is not None:
        stored = 0 if draft.files is files else draft.files.stored_bytes // ranks
        beside = shape_of(of_rank(draft.decoder), name=draft.files.name, stored_bytes=stored)
    return shape_of(of_rank(decoder), name=files.name, stored_bytes=files.stored_bytes // ranks, draft=beside)


def speculate(config: Config, slots: Slots, kv: KVCache, executor: Executor) -> Speculation:
    """What drafts, if anything is to. The executor has captured what steps are run by, and no plan has been run."""
    names, most = drafters(config), config.speculation.num_speculative_tokens
    if not names or not most:
        return Speculation()
    costs, told = _timed(config, executor, most)
    makers: dict[str, Callable[[], Drafter]] = {
        "prediction": Predictions,
        "tree": lambda: Tree(Paths(kv.tree).find),
        "ngram": lambda: Lookup(config.speculation.prompt_lookup_min),
        MODEL: lambda: OnDevice(MODEL),
        MTP: lambda: OnDevice(MTP),
    }
    mine = [makers[name]() for name in names]
    reason = f"if they are right; measured: {told}"
    decisions = [Decision("drafts_pay_up_to", f"{costs.bend()} tokens a step", reason)]
    passes = None
    for place in (names.index(one) for one in (MODEL, MTP) if one in names):
        line, reason = _passes(config, executor, most)
        passes = Passes(place, line)
        decisions.append(Decision("draft_model", config.speculation.speculative_model or "the model's own", reason))
    pace = Adaptive(len(slots.owner), len(mine), most=most, costs=costs, passes=passes)
    stake = DraftStake(slots, mine, most=most, pace=pace)
    return Speculation((stake,), (stake.gauges,), tuple(decisions))


def _timed(config: Config, executor: Executor, most: int) -> tuple[Costs, str]:
    """What steps cost of which each row feeds up to `most` drafts, and what an operator is told of it."""
    scheduler, longest = config.scheduler, config.model.max_model_len
    most_tokens, most_rows = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    assert longest is not None and most_tokens is not None and most_rows is not None, "a resolved configuration"
    per_row = max(2, min(most + 1, longest - 1))
    sizes = [size for size in _SIZES if size <= most_tokens]
    trials = [Trial(size, each) for size in sizes for each in (1, per_row) if size > 1 or each == 1]
    trials = [trial for trial in trials if trial.num_rows <= most_rows]
    found = dict(zip(trials, executor.time_steps(trials, budget=_SECONDS), strict=False))
    alone = {trial.tokens: took for trial, took in found.items() if trial.per_row == 1}
    with_drafts = {1: alone[1]} | {trial.tokens: took for trial, took in found.items() if trial.per_row > 1}
    plain, drafted = (Line(list(one), list(one.values()), most_tokens) for one in (alone, with_drafts))
    row, draft = _reading(executor, per_row, min(_LONG, longest - per_row - 1))
    told = ", ".join(f"{size}: {1000 * took:.3g} ms" for size, took in with_drafts.items())
    told += f"; for 1,000 positions {1e6 * row:.2g} ms a row and {1e6 * draft:.2g} ms a draft"
    return Costs(plain, drafted, row=row, draft=draft), told


def _passes(config: Config, executor: Executor, most: int) -> tuple[Line, str]:
    """What a draft of the draft model costs in so many rows, and what an operator is told of it: steps are timed with its drafts and with others."""
    scheduler, longest = config.scheduler, config.model.max_model_len
    assert longest is not None and scheduler.max_num_seqs and scheduler.max_num_batched_tokens
    count = max(1, min(most, _PASSES, longest - 2))
    room = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens // (count + 1))
    rows = [size for size in _SIZES if size <= max(room, 1)]
    trials = [Trial(size * (count + 1), count + 1, 0, ahead) for size in rows for ahead in (False, True)]
    found = executor.time_steps(trials, budget=_SECONDS)
    seconds = [max(0.0, drafting - alone) / count for alone, drafting in zip(found[::2], found[1::2], strict=False)]
    told = ", ".join(f"{size}: {1000 * took:.3g} ms" for size, took in zip(rows, seconds, strict=False))
    return Line(rows[: len(seconds)], seconds, scheduler.max_num_seqs), f"a draft in so many requests takes {told}"


def _reading(executor: Executor, per_row: int, behind: int) -> tuple[float, float]:
    """Seconds of each position that a row has before it, and of each that a draft has."""
    if behind <= 0:
        return 0.0, 0.0
    trials = [Trial(tokens, tokens, before) for before in (0, behind) for tokens in (1, per_row)]
    one, several, one_behind, several_behind = executor.time_steps(trials, budget=_SECONDS)
    row = max(0.0, one_behind - one) / behind
    draft = max(0.0, (several_behind - several) / behind - row) / (per_row - 1)
    return row, draft
