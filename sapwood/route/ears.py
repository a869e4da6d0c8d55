"""Listening to servers that tell of their caches, over ZeroMQ; what was missed is asked for again where a server has an address for that.

A subscription brings topic | number, 8 bytes, big end first | payload. Asked with the number of the first, the other address gives all
payloads from that one on that it has kept, each as number | payload, and -1 in the end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from sapwood.base.endpoints import endpoint_of
from sapwood.route.fleet import Fleet, Replica
from sapwood.route.kv import KVIndex, Unreadable
from sapwood.route.metrics import Metrics

log = logging.getLogger(__name__)

_MOST_UNREAD = 100_000  # payloads
_PATIENCE = 5.0  # seconds for the next payload that was asked for again
_AGAIN = 1.0  # seconds until one that cannot be listened to is tried again


class Ears:
    """One listener for each engine of a server that tells and answers. `tend` is called whenever that may have changed."""

    def __init__(self, fleet: Fleet, index: KVIndex, metrics: Metrics) -> None:
        self._fleet, self._index, self._metrics = fleet, index, metrics
        self._context: zmq.asyncio.Context | None = None
        self._tasks: dict[tuple[str, int], tuple[Replica, str, asyncio.Task[None]]] = {}
        metrics.watch_kv(index.num_blocks)

    def tend(self) -> None:
        """Have those listened to who are there, and nobody else."""
        there = [one for one in self._fleet.replicas.values() if one.server.events and one.alive]
        wanted = {(one.name, rank): one for one in there for rank in range(one.server.engines)}
        for (name, rank), (replica, address, task) in list(self._tasks.items()):
            if wanted.get((name, rank)) is not replica or address != _at(replica, replica.server.events, rank):
                task.cancel()
                del self._tasks[name, rank]
                self._index.forget(name, rank)
        for (name, rank), replica in wanted.items():
            if (name, rank) not in self._tasks:
                self._index.follow(name, rank)
                task = asyncio.get_running_loop().create_task(self._listen(replica, rank))
                self._tasks[name, rank] = replica, _at(replica, replica.server.events, rank), task

    async def close(self) -> None:
        """Listen to nobody any more."""
        tasks = [task for _, _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(0)

    async def _listen(self, replica: Replica, rank: int) -> None:
        if self._context is None:
            self._context = zmq.asyncio.Context()
        while True:
            try:
                await _Ear(replica, rank, self._context, self._index, self._metrics).listen()
            except Exception:
                if self._tasks.get((replica.name, rank), (None,))[0] is not replica:
                    return  # it failed while it was told to end
                log.exception("%s cannot be listened to; it is tried again", replica.name)
                self._index.forget(replica.name, rank, wholly=False)
                await asyncio.sleep(_AGAIN)


class _Ear:
    """One engine of a server. `last` is the number of the last payload that was heard without a gap, `told` that of the last that came unasked."""

    def __init__(
        self, replica: Replica, rank: int, context: zmq.asyncio.Context, index: KVIndex, metrics: Metrics
    ) -> None:
        self._replica, self._name, self._rank = replica, replica.name, rank
        self._context, self._index, self._metrics = context, index, metrics
        self._last: int | None = None
        self._told = -1
        self._lock = asyncio.Lock()

    async def listen(self) -> None:
        """Until it is cancelled. Raises what goes wrong."""
        with self._context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, _MOST_UNREAD)
            socket.setsockopt(zmq.LINGER, 0)
            socket.subscribe(b"")
            monitor: Any = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
            socket.connect(_at(self._replica, self._replica.server.events, self._rank))
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._hear(socket))
                    tasks.create_task(self._mind(monitor))
            finally:
                socket.disable_monitor()
                monitor.close(0)

    async def _hear(self, socket: Any) -> None:
        while True:
            *_, number, payload = await socket.recv_multipart()
            async with self._lock:
                await self._heard(int.from_bytes(number, "big"), payload)

    async def _mind(self, monitor: Any) -> None:
        """A server that was cut off may be another one when it is back: nothing that is known holds."""
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            async with self._lock:
                if event == zmq.EVENT_DISCONNECTED:
                    self._forget()
                elif self._last is None:
                    await self._ask_again(0)

    async def _heard(self, number: int, payload: bytes) -> None:
        if number <= self._told:
            self._forget()  # it counts anew: it is another one
        self._told = number
        missed = 0 if self._last is None else self._last + 1
        if number > missed:
            await self._ask_again(missed)
            if self._last is not None and self._last + 1 < number:
                log.warning("%s: events %d to %d are lost; its cache is guessed at", self._name, missed, number - 1)
                self._metrics.kv_gap(self._name, "lost")
                self._forget()
                self._told = number
                await self._ask_again(0)
        if self._last is None or number > self._last:  # else it was asked for, and has come
            self._take(number, payload)

    async def _ask_again(self, first: int) -> None:
        """For payloads from that one on, where there is an address for that."""
        address = self._replica.server.events_replay
        if address is None:
            return
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(_at(self._replica, address, self._rank))
            await socket.send_multipart((b"", first.to_bytes(8, "big")))
            try:
                while True:
                    async with asyncio.timeout(_PATIENCE):
                        *_, raw, payload = await socket.recv_multipart()
                    number = int.from_bytes(raw, "big", signed=True)
                    if number < 0:
                        break
                    if first and number > first and (self._last is None or self._last < first):
                        return  # it has kept only later ones
                    self._take(number, payload)
                self._metrics.kv_gap(self._name, "replayed")
            except TimeoutError:
                log.warning("%s does not answer at %s", self._name, address)

    def _take(self, number: int, payload: bytes) -> None:
        if not self._index.follows(self._name, self._rank):
            return  # this is about to end
        try:
            count = self._index.hear(self._name, payload, self._rank)
        except Unreadable as error:
            log.warning("%s tells what is no KV event: %s", self._name, error)
            count = 0
        self._metrics.kv_events(self._name, count)
        self._last = number
        if number == 0:
            self._index.complete(self._name, self._rank)

    def _forget(self) -> None:
        self._last, self._told = None, -1
        self._index.forget(self._name, self._rank, wholly=False)


def _at(replica: Replica, address: str | None, rank: int) -> str:
    """An address of an engine's events; a * in it is the server's own host."""
    host = urlsplit(replica.url).hostname or ""
    return endpoint_of((address or "").replace("*", f"[{host}]" if ":" in host else host), rank)
