"""The router, put together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web

from sapwood import __version__
from sapwood.base.errors import RequestError
from sapwood.config import env
from sapwood.config.options import ServerConfig
from sapwood.route.admission import admitted
from sapwood.route.ask import Ask
from sapwood.route.discovery import Finder, by_dns, way_of
from sapwood.route.ears import Ears
from sapwood.route.fleet import Fleet, State
from sapwood.route.guests import Passing
from sapwood.route.kubernetes import Kubernetes
from sapwood.route.kv import KVIndex
from sapwood.route.line import Line
from sapwood.route.metrics import Metrics
from sapwood.route.pairs import Pairs, PrefillDecode
from sapwood.route.paths import CARRIED
from sapwood.route.policies import policies
from sapwood.route.prefixes import Prefixes
from sapwood.route.proxy import Proxy, Turn, worded
from sapwood.route.seats import Post, Seats
from sapwood.route.table import Table
from sapwood.route.tokens import Tokens
from sapwood.route.upstream import Upstream
from sapwood.route.watch import Watch
from sapwood.route.wire import Pool
from sapwood.server.auth import Guard
from sapwood.server.door import Door
from sapwood.server.errors import problem

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=600.0)

Handler = Callable[[web.Request], Any]


class Router:
    """A fleet behind one address. `path` is where its table was read from, if it was; `finders` are ways of looking servers up beside
    those that it has, whose servers may be begun when requests wait for them; names are looked up every `names_every` seconds."""

    def __init__(
        self,
        table: Table,
        options: ServerConfig,
        path: Path | None = None,
        *,
        every: float = 2.0,
        finders: Mapping[str, Finder] | None = None,
        names_every: float = 10.0,
    ) -> None:
        self.fleet, self.prefixes = Fleet(table), Prefixes()
        self.fleet.set_table(table)
        self._given = options
        self.metrics, self.guard = Metrics(self.fleet), Guard(self._with_keys(table))
        self._index = KVIndex()
        self._line: Line[Turn] = Line(self.metrics)
        self._path, self._every, self._names_every = path, every, names_every
        self._finders = finders or {}
        self.fleet.begun = lambda server: way_of(server)[0] in self._finders

    def waiting(self) -> Counter[str]:
        """Requests that wait for a server with room, by the model that they are tried with first."""
        found: Counter[str] = Counter()
        for kind, count in self._line.kinds().items():
            models, *_ = cast(tuple[Sequence[str | None], Sequence[str], str], kind)
            found[models[0] or ""] += count
        return found

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[web.Application]:
        """The application, and what goes on beside it."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)  # uvicorn's servers close after five
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=_TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies are between clients and servers
        )
        pool = Pool()
        async with session:
            ears = Ears(self.fleet, self._index, self.metrics)

            def changed() -> None:
                self._line.pump()
                ears.tend()

            self._watch = Watch(
                self.fleet,
                self.prefixes,
                session,
                self._path,
                finders={"dns": by_dns, "k8s": Kubernetes(session, env.kubernetes()), **self._finders},
                changed=changed,
                taken=lambda table: self.guard.renew(self._with_keys(table)),
                gone=self.metrics.forget,
                every=self._every,
                names_every=self._names_every,
            )
            await self._watch.first_look()
            seats = Seats(self.fleet, session, self.metrics.registry, self._line.pump)
            loop = asyncio.get_running_loop()
            beside = [loop.create_task(self._watch.run()), loop.create_task(seats.run())]
            try:
                yield self._application(Upstream(pool, own_keys=lambda: self.guard.keyed), seats)
            finally:
                for task in beside:
                    task.cancel()
                await self._watch.close()
                await ears.close()
                await pool.close()

    def _with_keys(self, table: Table) -> ServerConfig:
        """Options, with the file of keys that a table names where they name none."""
        return dataclasses.replace(self._given, api_keys_file=self._given.api_keys_file or table.api_keys_file)

    async def read_again(self) -> None:
        """The table, from its file."""
        await self._watch.read_again()

    def _application(self, carrier: Upstream, seats: Seats) -> web.Application:
        made = policies(self.prefixes, self._index, Tokens(carrier, self.metrics))
        pairs = Pairs(carrier, self.metrics, lambda: self.fleet.table.prefill_from, self._line.pump)
        chosen = {**made, "prefill_decode": PrefillDecode(pairs, made["cache_aware"], made["least_load"])}
        proxy = Proxy(self.fleet, chosen, self.metrics, carrier, self.guard, self._line, seats.guests)
        app = web.Application(client_max_size=self._given.max_body_bytes, middlewares=[_told])
        app.add_routes([web.post(path, proxy.handle) for path in CARRIED])
        app.add_routes([web.post(path, self._counted(handler)) for path, handler in seats.posts.items()])
        app.add_routes(
            [
                web.get("/v1/models", self._open(self._models)),
                web.get("/api/tags", self._open(self._tags)),
                web.get("/api/version", self._open(self._version)),
                web.get("/health", self._health),
                web.get("/metrics", self._open(self._metrics)),
                web.get("/route", self._open(self._state)),
                web.post("/route/drain", self._for_operators(self._drain)),
                web.post("/route/resume", self._for_operators(self._drain)),
            ]
        )
        return app

    # -- who may ask ----------------------------------------------------------------------------------------------

    def _open(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            admitted(self.guard, request)
            answer: web.StreamResponse = await handler(request)
            return answer

        return guarded

    def _counted(self, handler: Post) -> Handler:
        """For work that counts as a request of whoever asks."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            account = admitted(self.guard, request)
            account.count()
            with account.generating(0) as used:
                ask = Ask(request.path, await request.read(), request.headers)
                passing = Passing(ask, request.headers, account.tenant.name)
                try:
                    return await handler(request, passing)
                finally:
                    used.tokens = passing.spent

        return guarded

    def _for_operators(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            admitted(self.guard, request, operator=True)
            answer: web.StreamResponse = await handler(request)
            return answer

        return guarded

    # -- what the router answers itself -----------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        made = [{"id": name, "object": "model", "created": 0, "owned_by": "sapwood"} for name in self.fleet.models()]
        return web.json_response({"object": "list", "data": made})

    async def _tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": name, "model": name} for name in self.fleet.models()]})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": __version__})

    async def _health(self, request: web.Request) -> web.Response:
        ready = sum(one.state is State.READY for one in self.fleet.replicas.values())
        told = {"status": "ok" if ready else "no server answers", "ready": ready, "servers": len(self.fleet.replicas)}
        return web.json_response(told, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"content-type": "text/plain; version=0.0.4"})

    async def _state(self, request: web.Request) -> web.Response:
        servers = [
            {
                "name": one.name,
                "url": one.shown_url,
                "state": one.state.value,
                "running": one.running,
                "role": one.server.role,
                "models": sorted(one.models or ()),
            }
            for one in self.fleet.replicas.values()
        ]
        return web.json_response({"policy": self.fleet.table.policy, "blocks": len(self.prefixes), "servers": servers})

    async def _drain(self, request: web.Request) -> web.Response:
        name = request.query.get("server", "")
        replica = self.fleet.replicas.get(name)
        if replica is None:
            names = ", ".join(self.fleet.replicas)
            raise RequestError(f"There is no server {name!r}; there are: {names}.", param="server", status=404)
        replica.draining = request.path.endswith("/drain")
        self._line.pump()
        return web.json_response({"server": name, "state": replica.state.value, "running": replica.running})


@web.middleware
async def _told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in the words of the path's API."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPException as error:
        message = f"The router does not carry {request.path}." if error.status == 404 else error.reason
        return worded(request.path, problem(RequestError(message, status=error.status)))
    except web.RequestPayloadError as error:
        refused = worded(request.path, problem(RequestError(f"The body cannot be read: {error}.", status=400)))
        refused.force_close()  # where the next request begins nobody knows
        return refused
    except (ConnectionResetError, asyncio.CancelledError):
        raise  # the client has gone
    except Exception as error:
        return worded(request.path, problem(error))


@contextlib.asynccontextmanager
async def listening(app: web.Application, door: Door, options: ServerConfig) -> AsyncIterator[None]:
    """Answer at a door. At the end running requests may end for as long as `drain_seconds` says."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=options.drain_seconds,
        keepalive_timeout=75,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, door.sock, ssl_context=door.tls).start()
        log.info("listening on %s", door.url)
        yield
    finally:
        await runner.cleanup()


async def serve(router: Router, door: Door, options: ServerConfig, *, on_ready: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; then running requests may end for as long as `drain_seconds` says. SIGHUP reads the table again."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    reading: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with router.serving() as app:

        def read_again() -> None:
            task = loop.create_task(router.read_again())
            reading.add(task)
            task.add_done_callback(reading.discard)

        loop.add_signal_handler(signal.SIGHUP, read_again)
        async with listening(app, door, options):
            gc.collect()
            gc.freeze()  # what is there now stays: nobody looks through it again and again
            on_ready(door.url)
            await over.wait()
