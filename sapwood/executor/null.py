"""An executor that computes nothing and answers at once: what remains is the cost of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sapwood.base.pages import Bytes, Moves, Rooms
from sapwood.base.plan import Bits, Floats, Ints, LatePart, Longs, Outcome, Plan, Propose
from sapwood.base.trial import Trial
from sapwood.base.weights import Given, Group, Held, Level, Sent
from sapwood.executor.base import Measured
from sapwood.executor.fake import NullAdapters, measured

if TYPE_CHECKING:
    from sapwood.arch.network import Network
    from sapwood.config.options import Config
    from sapwood.hub.draft import DraftModel
    from sapwood.hub.files import ModelFiles


class NullExecutor:
    """Every head draws `token`, and every draft was right. Nothing is stored and nothing is checked; FakeExecutor does that.

    Masks are taken and ignored; until a model is started they are of `vocab_size` tokens.
    """

    def __init__(self, token: int = 0, *, vocab_size: int = 1000) -> None:
        self.token = token
        self._vocab_size = vocab_size

    def scout(self, config: Config, model: DraftModel) -> Callable[[Ints], Floats]:
        return lambda tokens: np.zeros(len(tokens), np.float32)

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        self._vocab_size = decoder.vocab_size
        return measured(config, decoder, "null", max_drafts=max_drafts, draft=draft)

    def allocate(self, num_pages: Sequence[int]) -> None:
        pass

    def capture(self) -> None:
        pass

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        return [1.0] * len(trials)  # all steps alike

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> NullPager:
        return NullPager(num_blocks)

    def adapters(self) -> NullAdapters:
        return NullAdapters()

    def forward(self, plan: Plan) -> Plan:
        return plan

    def proposed(self, work: Plan) -> Ints:
        propose = work.part(Propose)
        return np.full(0 if propose is None or not propose.told else int(propose.counts_P.sum()), self.token, np.int32)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return np.empty((num_rows, width or -(-self._vocab_size // 32)), np.int32)

    def sample(self, work: Plan, late: tuple[LatePart, ...] = ()) -> None:
        pass

    def result(self, work: Plan) -> Outcome:
        return Outcome(np.full(work.num_heads, self.token, np.int32), work.heads_R, {}, {}, {})

    def tidy(self) -> bool:
        return False

    def expert_tokens(self) -> Longs:
        return np.zeros((0, 0), np.int64)

    def check_weights(self, given: Given) -> None:
        pass

    def take_weights(self, given: Given) -> None:
        pass

    def join(self, group: Group) -> None:
        pass

    def leave(self, group_name: str) -> None:
        pass

    def receive(self, sent: Sent, folder: str) -> None:
        pass

    def release(self, held: Sequence[Held], level: Level) -> None:
        pass

    def restore(self, held: Sequence[Held]) -> None:
        pass

    def shutdown(self) -> None:
        pass


class NullPager:
    """Keeps the protocol `Pager` with pages of no bytes."""

    def __init__(self, num_blocks: Sequence[int]) -> None:
        self.blocks: list[Bytes] = [np.empty((count, 0), np.uint8) for count in num_blocks]

    def save(self, moves: Sequence[Moves]) -> None:
        pass

    def load(self, moves: Sequence[Moves]) -> None:
        pass

    def done(self, handle: None) -> bool:
        return True
