"""How one of several servers is chosen. Each policy says why, in a word that metrics and headers show."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from sapwood.route.ask import Ask
from sapwood.route.fleet import Replica
from sapwood.route.kv import BYTES, KVIndex
from sapwood.route.prefixes import Prefixes
from sapwood.route.tokens import Tokens

_RUNNING_IS_WORTH = 8.0
"""Blocks of a prompt that have to be computed anew are as bad as a request that runs already: about 512 tokens."""


_LATELY = 10.0  # seconds
_WORTH_ASKING = 4  # blocks of a prompt for which a server is asked for its tokens


class Chosen(NamedTuple):
    replica: Replica
    reason: str


class Policy(Protocol):
    """Chooses one of the replicas, of which there is one at least."""

    async def prepare(self, ask: Ask, replicas: Sequence[Replica], model: str | None) -> None:
        """Find out what `choose` goes by, which does not wait; these may be chosen from, and are asked for that model."""
        return

    def answering(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        """Those of these that may answer; one at least, if there is one."""
        return replicas

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen: ...

    def sent(self, ask: Ask, replica: Replica) -> None:
        """It was sent there."""
        return


class RoundRobin(Policy):
    """One after the other, by weight, as evenly as can be (nginx's smooth weighted turns): each gains its weight with every turn, and
    who has most pays for all."""

    def __init__(self) -> None:
        self._has: dict[str, float] = {}

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        for one in replicas:
            self._has[one.name] = self._has.get(one.name, 0.0) + one.server.weight
        chosen = max(replicas, key=lambda one: self._has[one.name])
        self._has[chosen.name] -= sum(one.server.weight for one in replicas)
        return Chosen(chosen, "turn")


class LeastLoad(Policy):
    """Who has the least to do."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        return Chosen(min(replicas, key=lambda one: (one.load, self._rng.random())), "least_load")


class PowerOfTwo(Policy):
    """Who has less to do of two that are drawn: nearly as good as the least of all, and several routers do not all rush to the same one
    (Mitzenmacher, 2001)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        two = self._rng.sample(list(replicas), 2) if len(replicas) > 1 else replicas
        return Chosen(min(two, key=lambda one: one.load), "of_two")


class Session(Policy):
    """Requests that belong together go to the same server while it can be asked: the one for which a hash of both is the largest
    (rendezvous hashing, Thaler and Ravishankar, 1998), so that a server that comes or goes moves nobody else's."""

    def __init__(self, other: Policy) -> None:
        self._other = other

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        session = ask.session
        if session is None:
            return Chosen(self._other.choose(ask, replicas).replica, "no_session")
        return Chosen(max(replicas, key=lambda one: self._score(session, one)), "session")

    @staticmethod
    def _score(session: str, replica: Replica) -> float:
        digest = hashlib.blake2b(f"{session}\0{replica.name}".encode(), digest_size=8).digest()
        return -replica.server.weight / math.log((int.from_bytes(digest) + 1) / (2**64 + 1))


class CacheAware(Policy):
    """Who has the least left to do before the answer begins: blocks of the prompt that it does not have, and requests that run there,
    each of which is worth some blocks. So a prompt goes where its beginning is, unless too many are there already. What a server has
    follows from its own events where it tells them, and else from what it has been sent."""

    def __init__(self, prefixes: Prefixes, index: KVIndex, tokens: Tokens | None, rng: random.Random) -> None:
        self._prefixes, self._index, self._tokens, self._rng = prefixes, index, tokens, rng

    async def prepare(self, ask: Ask, replicas: Sequence[Replica], model: str | None) -> None:
        if self._tokens is None or len(replicas) < 2 or len(ask.blocks) < _WORTH_ASKING:
            return
        if any(self._index.follows(one.name) for one in replicas):
            ask.tokens = await self._tokens.of(ask, replicas)

    def choose(self, ask: Ask, replicas: Sequence[Replica]) -> Chosen:
        blocks, names = ask.blocks, [one.name for one in replicas]
        held: dict[str, float] = {**self._prefixes.held(blocks, names)}
        told = {} if ask.tokens is None else self._index.held(ask.tokens, ask.model, names)
        if told:
            lately = self._prefixes.held(blocks, told, _LATELY)  # what they are sent is computed before it is told of
            whole = len(ask.tokens or b"") / BYTES
            for name, tokens in told.items():
                sent = lately[name] if self._index.whole(name) else held[name]
                held[name] = max(tokens / whole * len(blocks), sent)
        most = max(held.values())

        def left(one: Replica) -> tuple[float, float]:
            return len(blocks) - held[one.name] + _RUNNING_IS_WORTH * one.load, self._rng.random()

        chosen = min(replicas, key=left)
        if most < 1:
            return Chosen(chosen, "new")
        found = "held" if told.get(chosen.name) else "cached"
        return Chosen(chosen, found if held[chosen.name] == most else "balanced")

    def sent(self, ask: Ask, replica: Replica) -> None:
        self._prefixes.note(ask.blocks, replica.name)


def policies(
    prefixes: Prefixes, index: KVIndex | None = None, tokens: Tokens | None = None, rng: random.Random | None = None
) -> Mapping[str, Policy]:
    """One of each, by name."""
    rng = rng or random.Random()
    makers: dict[str, Callable[[], Policy]] = {
        "cache_aware": lambda: CacheAware(prefixes, index or KVIndex(), tokens, rng),
        "least_load": lambda: LeastLoad(rng),
        "power_of_two": lambda: PowerOfTwo(rng),
        "session": lambda: Session(PowerOfTwo(rng)),
        "round_robin": RoundRobin,
    }
    return {name: make() for name, make in makers.items()}
