"""Which guests a router has, in the order in which they have their say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from sapwood.route.fleet import Fleet
from sapwood.route.guests import Guests
from sapwood.route.inner import Inner
from sapwood.route.semantic.answers import KeptAnswers
from sapwood.route.semantic.auto import Meant, Rules
from sapwood.route.semantic.metrics import RuleMetrics
from sapwood.route.semantic.standing import Standing

_EVERY = 2.0  # seconds between two looks for what is to be prepared


class Seats:
    """The guests, and what they answer themselves.

    Attributes:
        posts: Handlers of paths, for whoever may ask at all.

    `left` is told when a server has answered what the router itself asked.
    """

    guests: Guests
    posts: Mapping[str, Callable[[web.Request], Any]]

    def __init__(
        self, fleet: Fleet, session: aiohttp.ClientSession, registry: CollectorRegistry, left: Callable[[], None]
    ) -> None:
        inner, metrics = Inner(fleet, session, left), RuleMetrics(registry)
        self._meant = Meant(fleet, inner)
        rules = Rules(fleet, inner, self._meant, metrics)
        self.guests = (Standing(fleet), rules, KeptAnswers(fleet, self._meant, metrics))
        self.posts = {"/route/explain": rules.explain}

    async def run(self) -> None:
        """What is prepared beside requests, for as long as the router serves."""
        while True:
            self._meant.warm()
            await asyncio.sleep(_EVERY)
