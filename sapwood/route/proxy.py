"""Carrying a request to a server and its answer back, to another one while nothing has been answered yet."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
from aiohttp import web
from starlette.datastructures import Headers

from sapwood.base.errors import Overloaded, RequestError
from sapwood.route import upstream
from sapwood.route.ask import Ask
from sapwood.route.fleet import Fleet, Replica
from sapwood.route.guests import Answered, Guests, Passing
from sapwood.route.metrics import Metrics
from sapwood.route.paths import envelope_of, last_words
from sapwood.route.policies import Policy
from sapwood.route.prefixes import Prefixes
from sapwood.route.upstream import Said, Silent, Upstream
from sapwood.server.auth import Guard
from sapwood.server.errors import Problem, problem
from sapwood.server.limits import Account, Used

log = logging.getLogger(__name__)

_TAIL = 4  # last pieces of a stream, in which its usage stands


@dataclass
class _Way:
    """A request on its way.

    Attributes:
        passing: What guests know of it.
        tried: Servers that it was sent to.
        refusal: What the last of these said.
        told: How the last was chosen.
    """

    request: web.Request
    passing: Passing
    used: Used
    began: float
    tried: list[str] = field(default_factory=list)
    refusal: Said | None = None
    told: str = ""

    @property
    def ask(self) -> Ask:
        return self.passing.ask


class Proxy:
    """Handles what is carried on."""

    def __init__(
        self,
        fleet: Fleet,
        policies: Mapping[str, Policy],
        prefixes: Prefixes,
        metrics: Metrics,
        carrier: Upstream,
        guard: Guard,
        guests: Guests = (),
    ) -> None:
        self._fleet, self._policies, self._prefixes = fleet, policies, prefixes
        self._metrics, self._upstream, self._guard = metrics, carrier, guard
        self._guests = guests

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The handler of all paths that are carried."""
        try:
            account = self._admit(request)
            account.count()
            body = await request.read()
            began = perf_counter()
            ask = Ask(request.path, body, request.headers, session_header=self._fleet.table.session_header)
            passing = Passing(ask, request.headers, account.tenant.name)
            with account.generating(0) as used:
                for guest in self._guests:
                    if (answer := await guest.arrives(passing)) is not None:
                        return answer
                return await self._carry(_Way(request, passing, used, began))
        except (RequestError, Overloaded) as error:
            return worded(request.path, problem(error))

    def _admit(self, request: web.Request) -> Account:
        return self._guard.admit(Headers(raw=list(request.raw_headers)), request.path, trusted=False)

    async def _carry(self, way: _Way) -> web.StreamResponse:
        for model in self._models(way):
            for replica in self._choices(way, model):
                with replica.at_work():
                    answer = await self._attempt(way, replica, model)
                if answer is not None:
                    return answer
        if way.refusal is not None:
            return web.Response(status=way.refusal.status, headers=way.refusal.headers, body=way.refusal.body)
        raise self._nobody(way)

    def _models(self, way: _Way) -> Sequence[str | None]:
        if way.passing.models is not None:
            return [model for name in way.passing.models for model in self._fleet.names(name)]
        return [None] if way.ask.model is None else self._fleet.names(way.ask.model)

    def _choices(self, way: _Way, model: str | None) -> Iterator[Replica]:
        """Servers to try, one after another."""
        asked = way.passing.models[0] if way.passing.models else way.ask.model
        alias = self._fleet.table.model.get(asked or "")
        name = (alias and alias.policy) or self._fleet.table.policy
        for _ in range(self._fleet.table.retries + 1):
            there = self._fleet.anybody() if model is None else self._fleet.for_model(model)
            there = [one for one in there if one.name not in way.tried]
            if not there:
                return
            chosen = self._policies[name].choose(way.ask, there)
            way.tried.append(chosen.replica.name)
            self._prefixes.note(way.ask.blocks if name == "cache_aware" else (), chosen.replica.name)
            self._metrics.chosen(chosen.replica.name, name, chosen.reason)
            way.told = f"{name}; {chosen.reason}; attempt {len(way.tried)}"
            yield chosen.replica

    async def _attempt(self, way: _Way, replica: Replica, model: str | None) -> web.StreamResponse | None:
        """The answer, or None if another server is to be asked."""
        body = way.ask.body if model is None else way.ask.named(model)
        self._metrics.overhead(perf_counter() - way.began)
        request = way.request
        try:
            response = await self._upstream.send(replica, request.method, request.path_qs, request.headers, body)
            async with response:
                return await self._answer(way, replica, response, model)
        except Silent as error:
            log.warning("%s did not answer %s: %s", replica.name, request.path, error)
            self._metrics.failed(replica.name, "silent")
            replica.failed()
            return None

    async def _answer(
        self, way: _Way, replica: Replica, response: aiohttp.ClientResponse, model: str | None
    ) -> web.StreamResponse | None:
        if response.status in upstream.BUSY or response.status in upstream.BROKEN:
            way.refusal = await upstream.refusal(response)
            if response.status in upstream.BUSY:
                replica.said_busy(upstream.retry_after(response.headers))
                self._metrics.failed(replica.name, "busy")
            else:
                replica.failed()
                self._metrics.failed(replica.name, "broken")
            return None
        told = {"x-sapwood-server": replica.name, "x-sapwood-route": way.told, **way.passing.told}
        first_piece = perf_counter() - way.began
        body: bytes | None = None
        if not response.content_type.startswith(upstream.STREAMS):
            said = await upstream.whole(response)
            body = said.body
            way.used.tokens = upstream.tokens_in([said.body])
            answer: web.StreamResponse = web.Response(
                status=said.status, headers={**said.headers, **told}, body=said.body
            )
        else:
            first = await upstream.next_piece(response)  # until there is one, another server may answer
            answer = web.StreamResponse(
                status=response.status, headers={**upstream.passed_on(response.headers), **told}
            )
            await answer.prepare(way.request)
            await self._stream(way, replica, response, answer, first)
        replica.succeeded()
        self._metrics.answered(replica.name, answer.status)
        how = Answered(model, answer.status, response.content_type, first_piece, perf_counter() - way.began, body)
        for guest in self._guests:
            guest.answered(way.passing, how)
        return answer

    async def _stream(
        self, way: _Way, replica: Replica, response: aiohttp.ClientResponse, answer: web.StreamResponse, piece: bytes
    ) -> None:
        """Piece by piece as it comes. A server that is cut off in the middle ends it with an error."""
        tail: deque[bytes] = deque(maxlen=_TAIL)
        try:
            while piece:
                tail.append(piece)
                await answer.write(piece)
                piece = await upstream.next_piece(response)
        except Silent as error:
            log.warning("%s was cut off in the middle of an answer: %s", replica.name, error)
            self._metrics.failed(replica.name, "cut")
            replica.failed()
            told = Problem(
                502, "server_error", "The server was cut off in the middle of the answer.", code="server_gone"
            )
            said = envelope_of(way.request.path)(told, "")
            await answer.write(last_words(way.request.path, response.content_type, said))
        way.used.tokens = upstream.tokens_in(tail)
        await answer.write_eof()

    def _nobody(self, way: _Way) -> Exception:
        """Why no server answered."""
        model, fleet = way.ask.model if way.passing.models is None else way.passing.models[0], self._fleet
        if way.tried:
            return Overloaded("None of the servers that were asked has answered; try again.", retry_after=1.0)
        known = {name for one in fleet.replicas.values() for name in one.models or ()}
        if model is not None and not known.intersection(fleet.names(model)) and model not in fleet.table.model:
            names = ", ".join(fleet.models()) or "none"
            return RequestError(
                f"No server has the model {model!r}; there are: {names}.",
                param="model",
                status=404,
                code="model_not_found",
            )
        return Overloaded("No server that has the model can be asked now; try again.", retry_after=1.0)


def worded(path: str, told: Problem) -> web.Response:
    """An error in the words of a path's API."""
    body = envelope_of(path)(told, "")
    return web.Response(status=told.status, headers=told.headers, body=body, content_type="application/json")
