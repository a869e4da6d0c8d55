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
from sapwood.route.semantic.table import Auto, Rule

_MOST = 20_000


class _Stays(NamedTuple):
    """The rule that a conversation was answered by, its score, and when."""

    rule: str
    score: float
    at: float


class Staying:
    """Remembers what the last conversations were answered by."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._stays: OrderedDict[bytes, _Stays] = OrderedDict()

    def settled(
        self, decision: Decision, auto: Auto, conversation: bytes, allowed: Callable[[Rule], tuple[str, ...]]
    ) -> Decision:
        """What a conversation is answered by: the rule of its last turn, unless one before that holds now, or refuses, or that rule's models
        are not `allowed`: have gone, or take more than they may."""
        if decision.refuse is not None:
            return decision
        now, before = self._clock(), self._stays.pop(conversation, None)
        if before is not None and now - before.at < auto.keep_seconds:
            places = {rule.name: place for place, rule in enumerate(auto.rule)}
            place = places.get(before.rule, len(places))
            if place < places.get(decision.rule, len(places)) and (models := allowed(auto.rule[place])):
                decision = Decision(before.rule, before.score, models, None, decision.passed, "kept")
        self._stays[conversation] = _Stays(decision.rule, decision.score, now)
        while len(self._stays) > _MOST:
            self._stays.popitem(last=False)
        return decision


def conversation_of(name: str, ask: Ask, question: Question, tenant: str) -> bytes:
    """A conversation is what says so, or else how it begins."""
    told = [tenant, name, ask.session, "" if ask.session else question.opening]
    return hashlib.blake2b(msgspec.json.encode(told), digest_size=16).digest()
