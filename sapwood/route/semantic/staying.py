"""Conversations that stay with their model, so that its cache knows them; they move up the table of rules, never down."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import msgspec

from sapwood.route.ask import Ask
from sapwood.route.semantic.decide import Decision
from sapwood.route.semantic.question import Question
from sapwood.route.semantic.table import Auto

_MOST = 20_000


class _Stays(NamedTuple):
    place: int
    decision: Decision
    at: float


class Staying:
    """Remembers what the last conversations were answered by."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._stays: OrderedDict[bytes, _Stays] = OrderedDict()

    def settled(
        self,
        decision: Decision,
        name: str,
        auto: Auto,
        ask: Ask,
        question: Question,
        tenant: str,
        at_hand: Callable[[str], bool],
    ) -> Decision:
        """What a conversation is answered by: what its last turn was, unless a rule before that one holds now, or refuses, or the model has
        gone."""
        if not auto.keep_seconds or decision.refuse is not None:
            return decision
        now, key = self._clock(), _key(name, ask, question, tenant)
        place = next((at for at, rule in enumerate(auto.rule) if rule.name == decision.rule), len(auto.rule))
        before = self._stays.pop(key, None)
        if (
            before is not None
            and now - before.at < auto.keep_seconds
            and before.place < place
            and any(map(at_hand, before.decision.models))
        ):
            place, decision = before.place, before.decision
            self._stays[key] = _Stays(place, decision, now)
            return Decision(decision.rule, decision.score, decision.models, None, decision.passed, "kept")
        self._stays[key] = _Stays(place, decision, now)
        while len(self._stays) > _MOST:
            self._stays.popitem(last=False)
        return decision


def _key(name: str, ask: Ask, question: Question, tenant: str) -> bytes:
    """A conversation is what says so, or else how it begins."""
    told = [tenant, name, ask.session, "" if ask.session else question.opening]
    return hashlib.blake2b(msgspec.json.encode(told), digest_size=16).digest()
