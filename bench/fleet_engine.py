"""An engine whose device only keeps time: the real scheduler, tree and loop, and steps that take as long as a card was measured to need."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.base.kv import Heads, KVGroup
from sapwood.base.plan import Plan, Runs
from sapwood.base.slots import Slots
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine
from sapwood.executor.null import NullExecutor
from sapwood.scheduler import Scheduler

VOCAB_SIZE = 32_000
PAGE_SIZE = 64  # coarser than the default of 16, since pages cost the simulation time


@dataclass(frozen=True)
class Card:
    """What a step takes on a device, in seconds, and what fits there.

    Attributes:
        weights: A step of few tokens, in which reading the weights is all.
        row: More for each row that decodes.
        read: More for each position whose keys and values rows that decode read; shared runs count once.
        prompt: A prompt's token; a step computes while it reads weights, so the longer of both counts.
        num_tokens: Tokens whose keys and values fit beside the weights.
        max_num_seqs, max_num_batched_tokens: The engine's options.
    """

    weights: float
    row: float
    read: float
    prompt: float
    num_tokens: int
    max_num_seqs: int = 512
    max_num_batched_tokens: int = 4096

    def seconds(self, plan: Plan) -> float:
        steady = slice(0, plan.num_steady)
        prompt = int(plan.counts_R[plan.num_steady :].sum())
        read = int(plan.starts_R[steady].sum()) + plan.num_steady - _read_once(plan.part(Runs))
        return max(self.weights, prompt * self.prompt) + plan.num_steady * self.row + read * self.read


def _read_once(runs: Runs | None) -> int:
    """Positions that would be read again for each further member of a run."""
    if runs is None:
        return 0
    others = runs.offsets_U1[1:] - runs.offsets_U1[:-1] - 1
    return int(((runs.highs_U - runs.lows_U) * others).sum())


H100_8B = Card(weights=5.9e-3, row=9e-6, read=47e-9, prompt=25e-6, num_tokens=400_000)
"""llama-8b in bf16 on an H100: set by its steps at batch 1, 32 and 256 (5.91, 6.70, 11.24 ms) and 39,000 prompt tokens a second
of long prompts (docs/performance.md)."""


class Clock(NullExecutor):
    """Answers at once, and says how long that would have taken."""

    def __init__(self, card: Card) -> None:
        super().__init__(token=1, vocab_size=VOCAB_SIZE)
        self._card = card
        self.seconds = 0.0

    def forward(self, plan: Plan) -> Plan:
        self.seconds += self._card.seconds(plan)
        return plan


class Simulated:
    """One engine. Host and device are taken to overlap perfectly."""

    def __init__(self, card: Card, *, longest: int) -> None:
        group = KVGroup(Heads(num_heads=1, num_kv_heads=1, head_dim=1), num_layers=1, page_size=PAGE_SIZE)
        slots = Slots(card.max_num_seqs, longest)
        self.kv = KVCache([group], [card.num_tokens // PAGE_SIZE])
        self.clock = Clock(card)
        self.scheduler = Scheduler(
            slots, [KVStake(self.kv, slots)], max_num_batched_tokens=card.max_num_batched_tokens, peek=self.kv.peek
        )
        intake = Intake(longest=longest, vocab_size=VOCAB_SIZE, seed=0)
        self.loop = Engine(self.scheduler, self.clock, intake, depth=0)
        self.asleep = True
