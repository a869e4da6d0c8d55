"""Drafters as the configuration wants them: put together once the model is there and its steps have been timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sapwood.base.slots import Slots
from sapwood.cache import KVCache, Paths
from sapwood.config import Config
from sapwood.config.resolve import Decision
from sapwood.config.speculation import drafters
from sapwood.draft import Adaptive, Costs, Drafter, DraftStake, Lookup, Predictions, Tree
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tokens of the steps that are timed
_SECONDS = 1.0  # after which no larger ones are


class Speculation(NamedTuple):
    """Who drafts, if anybody does, and what was found of the device."""

    stakes: tuple[DraftStake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    decisions: tuple[Decision, ...] = ()


def speculate(config: Config, slots: Slots, kv: KVCache, executor: Executor) -> Speculation:
    """What drafts, if anything is to. The executor has captured what steps are run by, and no plan has been run."""
    names, most = drafters(config), config.speculation.num_speculative_tokens
    if not names or not most:
        return Speculation()
    most_tokens = config.scheduler.max_num_batched_tokens
    assert most_tokens is not None, "a resolved configuration"
    sizes = [size for size in _SIZES if size <= most_tokens]
    seconds = executor.time_steps(sizes, drafts=most, budget=_SECONDS)
    costs = Costs(sizes[: len(seconds)], seconds, most_tokens)
    makers: dict[str, Callable[[], Drafter]] = {
        "prediction": Predictions,
        "tree": lambda: Tree(Paths(kv.tree).find),
        "ngram": lambda: Lookup(config.speculation.prompt_lookup_min),
    }
    mine = [makers[name]() for name in names]
    pace = Adaptive(len(slots.owner), len(mine), most=most, costs=costs)
    told = ", ".join(f"{size}: {1000 * took:.3g} ms" for size, took in zip(sizes, seconds, strict=False))
    reason = f"if they are right; measured: {told}"
    stake = DraftStake(slots, mine, most=most, pace=pace)
    return Speculation(
        (stake,), (stake.gauges,), (Decision("drafts_pay_up_to", f"{costs.bend()} tokens a step", reason),)
    )
