"""Which guests a router has, in the order in which they have their say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from sapwood.route.context.guest import Histories
from sapwood.route.fleet import Fleet
from sapwood.route.guests import Guests, Passing
from sapwood.route.inner import Inner
from sapwood.route.semantic.answers import KeptAnswers
from sapwood.route.semantic.auto import Meant, Rules
from sapwood.route.semantic.metrics import RuleMetrics
from sapwood.route.semantic.standing import Standing

Post = Callable[[web.Request, Passing], Awaitable[web.Response]]
"""Answers a request itself."""

_EVERY = 2.0  # seconds between two looks for what is to be prepared


class Seats:
    """The guests, and what they answer themselves.

    Attributes:
        posts: Handlers of paths, for whoever may ask at all; what they take counts as a request of theirs.

    `left` is told when a server has answered what the router itself asked.
    """

    guests: Guests
    posts: Mapping[str, Post]

    def __init__(
        self, fleet: Fleet, session: aiohttp.ClientSession, registry: CollectorRegistry, left: Callable[[], None]
    ) -> None:
        inner, metrics = Inner(fleet, session, left), RuleMetrics(registry)
        self._meant = Meant(fleet, inner)
        rules = Rules(fleet, inner, self._meant, metrics)
        histories = Histories(fleet, inner, registry)
        self.guests = (Standing(fleet), rules, KeptAnswers(fleet, self._meant, metrics), histories)
        self.posts = {"/route/explain": rules.explain, "/v1/context/compact": histories.compact}

    async def run(self) -> None:
        """What is prepared beside requests, for as long as the router serves."""
        while True:
            self._meant.warm()
            await asyncio.sleep(_EVERY)
