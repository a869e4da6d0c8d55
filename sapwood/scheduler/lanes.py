"""Requests as somebody looks at them: who runs, who waits, and how far each has come."""

from __future__ import annotations

from itertools import chain, islice
from typing import Literal, NamedTuple

from sapwood.base.request import Request
from sapwood.scheduler.roster import Roster

Phase = Literal["prompt", "output", "waiting", "aside"]


class Lane(NamedTuple):
    """One request. `prompt` and `output` are its known tokens, `computed` those whose keys and values are planned or there,
    `cached` the prompt tokens that were found in the cache (-1 before it has run), `limit` the length at which it ends,
    `arrived` the seconds of `Request.arrived`.

    A running request is in its `prompt` while it has more than one known token to feed, be it for the second time. Who waits
    `aside` must not be started yet.
    """

    id: int
    phase: Phase
    prompt: int
    output: int
    computed: int
    cached: int
    limit: int
    priority: int
    arrived: float


def lanes(roster: Roster, most: int) -> list[Lane]:
    """At most `most` requests: those who run, by slot, then those who wait, in their order."""
    running = (_running(roster, request) for request in roster.slots.running())
    waiting = (_waiting(request, "waiting") for request in roster.waiting)
    aside = (_waiting(request, "aside") for request in roster.aside)
    return list(islice(chain(running, waiting, aside), most))


def _running(roster: Roster, request: Request) -> Lane:
    slots, slot = roster.slots, request.slot
    fed, known = int(slots.fed[slot]), int(slots.known[slot])
    fresh = known <= request.prompt_len
    return _lane(request, "prompt" if fresh or fed < known - 1 else "output", known, fed)


def _waiting(request: Request, phase: Phase) -> Lane:
    return _lane(request, phase, len(request.tokens), 0)


def _lane(request: Request, phase: Phase, known: int, computed: int) -> Lane:
    prompt = request.prompt_len
    output, cached = known - prompt, request.cached_tokens
    return Lane(request.id, phase, prompt, output, computed, cached, request.limit, request.priority, request.arrived)
