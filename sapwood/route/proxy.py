"""Carrying a request to a server and its answer back, to another one while nothing has been answered yet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from sapwood.base.errors import Overloaded, RequestError
from sapwood.route import upstream
from sapwood.route.admission import admitted
from sapwood.route.ask import Ask
from sapwood.route.fleet import Fleet, Replica
from sapwood.route.guests import Answered, Copy, Guests, Passing
from sapwood.route.line import Line, Waiter
from sapwood.route.meter import Meter
from sapwood.route.metrics import Metrics
from sapwood.route.paths import envelope_of, last_words
from sapwood.route.policies import Policy
from sapwood.route.upstream import Said, Silent, Upstream
from sapwood.route.usage import Unasked
from sapwood.route.wire import Connection
from sapwood.server.auth import Guard
from sapwood.server.errors import Problem, problem
from sapwood.server.keys import Tenant

log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """Where a request goes now: a server, and the model that it is asked for there. No server: nobody is left to ask."""

    replica: Replica | None
    model: str | None = None


@dataclass
class _Way:
    """A request on its way.

    Attributes:
        passing: What guests know of it.
        models: Those that it may be answered by, in the order in which they are tried.
        policy: How a server is chosen.
        usage: Its stream is asked for what it has used, which the client is not to see.
        tried: Servers that it was sent to.
        attempts: How many of these were asked for each of the models.
        refusal: What the last of these said.
        told: How the last was chosen.
    """

    request: web.Request
    passing: Passing
    tenant: Tenant
    meter: Meter
    began: float
    models: Sequence[str | None]
    policy: str
    usage: bool
    tried: list[str] = field(default_factory=list)
    attempts: Counter[str | None] = field(default_factory=Counter)
    refusal: Said | None = None
    told: str = ""

    @property
    def ask(self) -> Ask:
        return self.passing.ask

    @property
    def asked(self) -> str | None:
        """The name that it is asked for by, or that a guest has put in its place."""
        return self.passing.models[0] if self.passing.models else self.ask.model


class Proxy:
    """Handles what is carried on."""

    def __init__(
        self,
        fleet: Fleet,
        policies: Mapping[str, Policy],
        metrics: Metrics,
        carrier: Upstream,
        guard: Guard,
        line: Line[Turn],
        guests: Guests = (),
    ) -> None:
        self._fleet, self._policies = fleet, policies
        self._metrics, self._upstream, self._guard = metrics, carrier, guard
        self._line, self._guests = line, guests

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The handler of all paths that are carried."""
        try:
            account = admitted(self._guard, request)
            account.count()
            upstream.check_encoding(request.headers)
            body = await request.read()
            began = perf_counter()
            told = self._fleet.table
            names = {"session_header": told.session_header, "session_cookie": told.session_cookie}
            ask = Ask(request.path, body, request.headers, **names)
            passing = Passing(ask, request.headers, account.tenant.name)
            with account.generating(0) as used:
                for guest in self._guests:
                    if (answer := await guest.arrives(passing)) is not None:
                        return answer
                way = self._way(request, passing, account.tenant, began)
                try:
                    return await self._carry(way)
                finally:
                    used.tokens = way.meter.tokens + passing.spent
                    self._metrics.used(used.tokens)
        except (RequestError, Overloaded) as error:
            return worded(request.path, problem(error))

    def _way(self, request: web.Request, passing: Passing, tenant: Tenant, began: float) -> _Way:
        ask, names = passing.ask, passing.models
        if names is None:
            names = () if ask.model is None else (ask.model,)
        models = [model for name in names for model in self._fleet.names(name)]
        alias = self._fleet.alias(names[0]) if names else None
        policy = (alias and alias.policy) or self._fleet.table.policy
        usage = tenant.tokens_per_minute is not None and ask.may_be_asked_for_usage
        return _Way(request, passing, tenant, Meter(ask), began, models or (None,), policy, usage)

    # -- who is asked -------------------------------------------------------------------------------------------------

    async def _carry(self, way: _Way) -> web.StreamResponse:
        model = way.models[0]
        await self._policies[way.policy].prepare(way.ask, self._fleet.able(model), model)
        while True:
            replica, model = await self._turn(way)
            if replica is None:
                break
            try:
                answer = await self._attempt(way, replica, model)
            finally:
                self._give_back(Turn(replica))
            if answer is not None:
                return answer
        if way.refusal is None:
            raise self._nobody(way)
        self._metrics.answered(way.tried[-1], way.refusal.status)
        headers = self._told(way, way.refusal.headers)
        return web.Response(status=way.refusal.status, headers=headers, body=way.refusal.body)

    async def _turn(self, way: _Way) -> Turn:
        """The next server to ask, which counts it from now on; waits for one with room. Raises LimitReached if that takes too long."""
        if not len(self._line) and (there := self._there(way)) is not None:
            return self._taken(way, there)

        def take() -> Turn:
            return self._taken(way, self._there(way) or [])

        kind = tuple(way.models), tuple(way.tried), way.policy  # which may want only some of the servers
        waiter = Waiter(kind, float(way.ask.weight), lambda: self._there(way) is not None, take, len(way.ask.body))
        table, tenant = self._fleet.table, way.tenant
        return await self._line.wait(
            tenant.name,
            tenant.weight,
            waiter,
            most=table.queue,
            most_bytes=table.queue_bytes,
            seconds=table.queue_seconds,
            undo=self._give_back,
        )

    def _there(self, way: _Way) -> list[tuple[str | None, Replica]] | None:
        """Whom to choose from, and the model that they are asked for: those that are not too busy, if there are any. None while there would
        be somebody if fewer requests were running."""
        full, most = False, self._fleet.table.retries + 1
        for model in way.models:
            if way.attempts[model] >= most:
                continue
            able = self._policies[way.policy].answering(self._fleet.able(model, way.tried))
            if room := [one for one in able if one.has_room]:
                return [(model, one) for one in room if not self._busy(way, one)] or [(model, one) for one in room]
            full = full or bool(able) or self._fleet.coming(model)
        return None if full else []

    def _busy(self, way: _Way, one: Replica) -> bool:
        """Whether it has said so, of all or of this client."""
        return bool(one.busy_until) and one.busy(self._upstream.whose(one, way.request.headers))

    def _taken(self, way: _Way, there: list[tuple[str | None, Replica]]) -> Turn:
        if not there:
            return Turn(None)
        policy, model = self._policies[way.policy], there[0][0]
        replica, reason = policy.choose(way.ask, [one for _, one in there])
        policy.sent(way.ask, replica)
        way.tried.append(replica.name)
        way.attempts[model] += 1
        self._metrics.chosen(replica.name, way.policy, reason)
        way.told = f"{way.policy}; {reason}; attempt {len(way.tried)}"
        replica.enters()
        return Turn(replica, model)

    async def _fit(self, way: _Way, model: str | None) -> Ask:
        """What a server of that model is sent, where guests make more of it than what they made of the request."""
        ask = way.ask
        for guest in self._guests:
            ask = await guest.leaves(way.passing, ask, model)
        return ask

    def _give_back(self, turn: Turn) -> None:
        """A server has room again."""
        if turn.replica is not None:
            turn.replica.leaves()
            self._line.pump()

    # -- what it answers ----------------------------------------------------------------------------------------------

    async def _attempt(self, way: _Way, replica: Replica, model: str | None) -> web.StreamResponse | None:
        """The answer, or None if another server is to be asked."""
        body = (await self._fit(way, model)).named(model, usage=way.usage)
        self._metrics.overhead(perf_counter() - way.began)
        request = way.request
        way.meter.sent()
        try:
            response = await self._upstream.send(replica, request.method, request.path_qs, request.headers, body)
            with response:
                return await self._answer(way, replica, response, model)
        except Silent as error:
            log.warning("%s did not answer %s: %s", replica.name, request.path, error)
            self._metrics.failed(replica.name, "silent")
            replica.failed()
            way.meter.refused()
            return None

    async def _answer(
        self, way: _Way, replica: Replica, response: Connection, model: str | None
    ) -> web.StreamResponse | None:
        if response.status in upstream.BUSY or response.status in upstream.BROKEN:
            way.refusal = await upstream.refusal(response)
            way.meter.refused()
            if response.status in upstream.BUSY:
                whose = (
                    self._upstream.whose(replica, way.request.headers) if response.status == upstream.TOO_MANY else ""
                )
                replica.said_busy(upstream.retry_after(response.headers), whose)
                self._metrics.failed(replica.name, "busy")
            else:
                replica.failed()
                self._metrics.failed(replica.name, "broken")
            return None
        streams = response.content_type.startswith(upstream.STREAMS)
        first_piece = perf_counter() - way.began
        body: bytes | None = None
        way.meter.begins(response.status, response.headers.get("content-encoding", ""), streams=streams)
        if not streams:
            said = await upstream.whole(response)
            body = said.body
            way.meter.sees(body)
            way.meter.ends()
            answer: web.StreamResponse = web.Response(
                status=said.status, headers=self._told(way, said.headers), body=body
            )
        else:
            first = await upstream.next_piece(response)  # until there is one, another server may answer
            headers = self._told(way, upstream.passed_on(response.headers))
            answer = web.StreamResponse(status=response.status, headers=headers)
            await answer.prepare(way.request)
            copy = Copy(way.passing.copied)
            if not await self._stream(way, replica, response, answer, first, copy):
                self._metrics.answered(replica.name, answer.status)
                return answer
            body = copy.body
        replica.succeeded()
        self._metrics.answered(replica.name, answer.status)
        how = Answered(model, answer.status, response.content_type, first_piece, perf_counter() - way.began, body)
        for guest in self._guests:
            guest.answered(way.passing, how)
        return answer

    async def _stream(
        self,
        way: _Way,
        replica: Replica,
        response: Connection,
        answer: web.StreamResponse,
        piece: bytes,
        copy: Copy,
    ) -> bool:
        """Piece by piece as it comes; whether it came to its end. A server that is cut off in the middle ends it with an error."""
        whole = True
        hidden = Unasked() if way.usage and not response.headers.get("content-encoding") else None
        try:
            while piece:
                way.meter.sees(piece)
                if hidden is not None:
                    piece = hidden.passes(piece)
                if piece:
                    copy.add(piece)
                    await answer.write(piece)
                piece = await upstream.next_piece(response)
            way.meter.ends()
            if hidden is not None and (piece := hidden.rest()):
                copy.add(piece)
                await answer.write(piece)
        except Silent as error:
            log.warning("%s was cut off in the middle of an answer: %s", replica.name, error)
            self._metrics.failed(replica.name, "cut")
            replica.failed()
            whole = False
            told = Problem(
                502, "server_error", "The server was cut off in the middle of the answer.", code="server_gone"
            )
            said = envelope_of(way.request.path)(told, "")
            await answer.write(last_words(way.request.path, response.content_type, said))
        await answer.write_eof()
        return whole

    @staticmethod
    def _told(way: _Way, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """An answer's headers, and who gave it."""
        headers["x-sapwood-server"], headers["x-sapwood-route"] = way.tried[-1], way.told
        headers.update(way.passing.told)
        return headers

    def _nobody(self, way: _Way) -> Exception:
        """Why no server answered."""
        model, fleet = way.asked, self._fleet
        if way.tried:
            return Overloaded("None of the servers that were asked has answered; try again.", retry_after=1.0)
        known = {name for one in fleet.replicas.values() for name in one.models or ()}
        if model is not None and not known.intersection(fleet.names(model)) and fleet.alias(model) is None:
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
