"""A request as the engine sees it, from arrival to its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.base.adapter import Adapter
from sapwood.base.drafts import Tally
from sapwood.base.handoff import Handoff
from sapwood.base.insight import Columns
from sapwood.base.media import Media, Span, keyed, seen_by_all
from sapwood.base.plan import Ints, TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Task

if TYPE_CHECKING:
    from sapwood.base.stake import Stake


def namespace_of(adapter: str, salt: str) -> str:
    """Where requests look for cached prefixes that they share."""
    return f"{adapter}\0{salt}"


class Request:
    """Known tokens, limits and whereabouts. What changes every step lives in the scheduler's arrays, by slot.

    Attributes:
        id: The front's number for it.
        tokens: int32, all known tokens while it waits; while it runs the scheduler's history holds them. Where media stand, they
            are the tree's keys, negative: see `spelled`.
        prompt_len: How many of them are the prompt.
        limit: Length at which it ends: prompt plus most new tokens, within the context.
        min_len: Length before which it cannot end by a stop token.
        stop_ids: Tokens that end it (end-of-sequence tokens included unless ignored).
        seed: 64-bit seed of its random choices.
        namespace: Requests share cached prefixes only within one (adapter and salt, and media that all tokens see).
        adapter: What changes the model's weights for it, if anything does.
        arrival: Running number, lower came first.
        arrived: When it came, in seconds of the host's monotonic clock; nothing is decided by it.
        waited: Seconds from then to the first plan that it is in, -1 before; whoever has a clock sets it.
        tenant: Whose it is, where tenants take turns; `weight` is their share.
        charged: Of its known tokens, those that its tenant has paid for.
        slot: Its slot while it runs, else -1.
        passed: How many later arrivals were admitted before it.
        cached_tokens: Prompt tokens found in the cache when first admitted; -1 before.
        hold: What it has of the KV cache; the cache's business alone.
        constraint: Where it is in its grammar, None without one; the grammar room's business alone. It stays with the
            request when that is preempted.
        drafted: How its drafts fare, by drafter.
        gaps: Of a prompt that was thinned, by how much the rotary position of each token is more than its place; that of the last holds
            for all behind it. None of a prompt that is whole.
        media: What it brings for an encoder. `spans` say where in the prompt that stands, in order.
        handoff: The other engine that its prompt is computed for, or by, if there is one.
        seen: Of its positions, how many it has been told what it wants to know of them, and `insights` what is to be told with its next news.
        task: What it wants. One that is no generation ends with its first token.
        stakes: Those that it concerns, in the scheduler's order.
    """

    __slots__ = (
        "_prompt",
        "adapter",
        "arrival",
        "arrived",
        "cached_tokens",
        "charged",
        "constraint",
        "drafted",
        "gaps",
        "handoff",
        "hold",
        "id",
        "insights",
        "limit",
        "media",
        "min_len",
        "namespace",
        "params",
        "passed",
        "priority",
        "prompt_len",
        "prompt_logprobs",
        "scored",
        "seed",
        "seen",
        "slot",
        "spans",
        "stakes",
        "stop_ids",
        "task",
        "tenant",
        "tokens",
        "waited",
        "weight",
    )

    def __init__(
        self,
        id: int,
        tokens: Ints,
        params: SamplingParams,
        *,
        limit: int,
        stop_ids: tuple[int, ...] = (),
        seed: int = 0,
        namespace: str = "",
        adapter: Adapter | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        arrival: int = 0,
        arrived: float = 0.0,
        task: Task = GENERATE,
        media: Sequence[Media] = (),
        spans: Sequence[Span] = (),
        handoff: Handoff | None = None,
    ) -> None:
        self.id = id
        self.tokens = self._prompt = np.ascontiguousarray(tokens, dtype=np.int32)
        self.media, self.spans = tuple(media), tuple(spans)
        if spans:
            self.tokens = keyed(self.tokens, media, spans)
        self.params = params
        self.prompt_len = len(self.tokens)
        self.limit = limit
        self.min_len = min(self.prompt_len + params.min_tokens, limit)
        self.stop_ids, self.seed = stop_ids, seed
        self.namespace = seen_by_all(media, spans) + namespace if media else namespace
        self.adapter = adapter
        self.priority = priority
        self.tenant, self.weight = tenant, weight
        self.charged = 0
        self.arrival, self.arrived = arrival, arrived
        self.waited = -1.0
        self.slot = self.cached_tokens = -1
        self.passed = self.seen = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        # What is asked of every position of the prompt is complete, or nothing is.
        self.scored = params.prompt_logprobs is None and not task.whole and not params.insights
        self.insights: list[Columns] = []
        self.task, self.handoff = task, handoff
        self.hold: Any = None
        self.constraint: Any = None
        self.drafted: dict[str, Tally] = {}
        self.gaps: Ints | None = None
        self.stakes: tuple[Stake, ...] = ()

    @property
    def spelled(self) -> Ints:
        """Its known tokens, while it waits, with those of the prompt where media stand."""
        if not self.spans:
            return self.tokens
        spelled = self.tokens.copy()
        spelled[: self.prompt_len] = self._prompt
        return spelled

    def thin(self, kept: Ints) -> None:
        """Before it has started: of its prompt only tokens at these places, ascending, are to be computed, and they keep their rotary
        positions. What is computed of them is nobody else's: it depends on what was left out."""
        assert not self.running and self.gaps is None and not self.spans and len(self.tokens) == self.prompt_len
        self.gaps = (kept - np.arange(len(kept))).astype(np.int32)
        left_out = self.prompt_len - len(kept)
        self.tokens = self._prompt = np.ascontiguousarray(self.tokens[kept])
        self.prompt_len, self.limit, self.min_len = (
            one - left_out for one in (self.prompt_len, self.limit, self.min_len)
        )
        self.namespace += f"\0thinned {self.arrival}"
        self.hold = None

    @property
    def num_left_out(self) -> int:
        """Tokens of the prompt that are not computed."""
        return 0 if self.gaps is None else int(self.gaps[-1])

    @property
    def running(self) -> bool:
        return self.slot >= 0
