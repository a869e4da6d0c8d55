"""What servers tell of their caches, and what the router makes of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sapwood.route.ears import Ears
from sapwood.route.fleet import Fleet
from sapwood.route.kv import KVIndex, Unreadable, packed
from sapwood.route.metrics import Metrics
from sapwood.route.table import checked
from sapwood.stores.events import Cleared, Event, Removed, Stored, payload
from sapwood.stores.zmq import ZmqPublisher
from tests.route.mock import Mock, routed, tokens_of, until
from tests.route.test_proxy import CHAT, run

SIZE = 4


class Cache:
    """A server's, told by whole texts: the slow twin."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng, self.size = rng, size
        self.names: dict[tuple[int, ...], int] = {}

    def store(self, tokens: list[int]) -> list[Event]:
        ends = range(self.size, len(tokens) + 1, self.size)
        new = [end for end in ends if tuple(tokens[:end]) not in self.names]
        if not new:
            return []
        for end in new:
            self.names[tuple(tokens[:end])] = self.rng.getrandbits(63)
        parent = self.names.get(tuple(tokens[: new[0] - self.size]))
        hashes = [self.names[tuple(tokens[:end])] for end in new]
        return [Stored(hashes, parent, tokens[new[0] - self.size : new[-1]], self.size)]

    def evict(self) -> list[Event]:
        leaves = [
            text for text in self.names if not any(len(o) > len(text) and o[: len(text)] == text for o in self.names)
        ]
        return [Removed([self.names.pop(self.rng.choice(leaves))])] if leaves else []

    def held(self, tokens: list[int]) -> int:
        return max((len(text) for text in self.names if tuple(tokens[: len(text)]) == text), default=0)


@pytest.mark.parametrize("positional", [False, True])
def test_what_is_held_is_what_was_told(positional: bool) -> None:
    rng = random.Random(3)
    index, caches = KVIndex(), {name: Cache(rng, size) for name, size in (("a", 4), ("b", 4), ("c", 3))}
    for name in caches:
        index.follow(name)
    for _ in range(300):
        text = [rng.randrange(2) for _ in range(rng.randrange(20))]
        for name, cache in caches.items():
            did = rng.random()
            events: list[Event] = cache.store(text) if did < 0.4 else cache.evict() if did < 0.7 else []
            if did > 0.99:
                events = [Cleared()]
                cache.names.clear()
            assert index.hear(name, payload(events, positional=positional)) == len(events)
        asked = [rng.randrange(2) for _ in range(rng.randrange(24))]
        assert index.held(packed(asked), "m", ["a", "b", "c", "deaf"]) == {
            name: cache.held(asked) for name, cache in caches.items()
        }
    assert index.num_blocks() == {name: len(cache.names) for name, cache in caches.items()}
    for name in caches:
        index.forget(name)
    index.forget("a", wholly=False)
    assert not index._holders and not index.follows("a")


def told(*events: Any) -> bytes:
    return msgspec.msgpack.encode([0.0, list(events)])


def stored(hashes: list[Any], parent: Any, tokens: list[int], **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": SIZE,
    } | more


def test_blocks_of_adapters_other_memory_pictures_and_unknown_parents() -> None:
    index, text = KVIndex(), list(range(8))
    index.follow("a")
    index.hear("a", told(stored([b"x", b"y"], None, text, lora_name="poet")))
    assert index.held(packed(text), "m", ["a"]) == {"a": 0} and index.held(packed(text), "poet", ["a"]) == {"a": 8}
    index.hear("a", told(stored([7], None, text[:4], medium="CPU")))
    index.hear("a", told(stored([8], None, text[:4], extra_keys=[["picture"]])))
    index.hear("a", told(stored([9], 1234, text[4:])))
    assert index.num_blocks() == {"a": 2}
    index.hear("a", told(stored([10], None, text[:4]), stored([11], None, text[:4])))
    index.hear("a", told({"type": "BlockRemoved", "block_hashes": [10, 99]}))
    assert index.held(packed(text), "m", ["a"]) == {"a": 4}  # another block has the same tokens
    for wrong in (b"\xc1", told({"type": "Birthday"}), told(["BlockStored"]), told(stored([1], None, ["x"]))):  # type: ignore[list-item]
        with pytest.raises(Unreadable):
            index.hear("a", wrong)


class Teller:
    """A server that publishes at `path`, with or without telling again."""

    def __init__(self, path: Path, kept: int | None, suffix: str = "") -> None:
        replay = None if kept is None else f"ipc://{path}/again{suffix}"
        self._publisher = ZmqPublisher(f"ipc://{path}/pub{suffix}", replay, topic="kv@", kept=kept or 1, most=1000)
        self.table = {"events": f"ipc://{path}/pub"} | ({} if replay is None else {"events_replay": replay})

    def tell(self, *events: Event) -> None:
        self._publisher.publish(payload(list(events), positional=False))

    def close(self) -> None:
        self._publisher.close()


@contextmanager
def listening(**server: Any) -> Iterator[tuple[Ears, KVIndex, Fleet, Metrics]]:
    table = checked({"server": [{"url": "http://h:1", "name": "a", "models": ["m"], **server}]}, "")
    fleet, index = Fleet(table), KVIndex()
    fleet.set_table(table)
    metrics = Metrics(fleet)
    yield Ears(fleet, index, metrics), index, fleet, metrics


def chain(number: int) -> Stored:
    """The block of that number of one long text."""
    return Stored([100 + number], 99 + number if number else None, [number] * SIZE, SIZE)


def length(index: KVIndex) -> int:
    text = [number for number in range(64) for _ in range(SIZE)]
    return index.held(packed(text), None, ["a"]).get("a", -1) // SIZE


def test_what_was_told_before_and_what_was_missed_is_asked_for_again(tmp_path: Path) -> None:
    async def case() -> None:
        teller = Teller(tmp_path, 100)
        for number in range(3):
            teller.tell(chain(number))
        with listening(**teller.table) as (ears, index, _, metrics):
            ears.tend()
            await until(lambda: length(index) == 3)
            assert index.whole("a")
            teller.tell(chain(3))
            await until(lambda: length(index) == 4)
            (ear,) = (task for _, _, task in ears._tasks.values())
            ears.tend()
            assert [task for _, _, task in ears._tasks.values()] == [ear]  # nothing has changed
            assert 'sapwood_route_kv_blocks{server="a"} 4.0' in metrics.text().decode()
            await ears.close()
        teller.close()

    run(case())


@pytest.mark.parametrize(("kept", "found"), [(100, 8), (2, 0), (None, 0)])
def test_a_gap_is_filled_or_costs_what_was_known(tmp_path: Path, kept: int | None, found: int) -> None:
    """The ear is told itself of payload 0 and then of 7, as if the others were lost on the way."""

    async def case() -> None:
        from sapwood.route.ears import _Ear

        teller = Teller(tmp_path, kept)
        for number in range(8):
            teller.tell(chain(number))
        with listening(**teller.table) as (ears, index, fleet, metrics):
            import zmq.asyncio

            context = zmq.asyncio.Context()
            index.follow("a")
            ear = _Ear(fleet.replicas["a"], 0, context, index, metrics)
            await ear._heard(0, payload([chain(0)], positional=False))
            assert length(index) == 1 and index.whole("a")
            await ear._heard(7, payload([chain(7)], positional=False))
            assert length(index) == found and index.whole("a") is bool(found)
            assert f'kv_gaps_total{{how="{"replayed" if found else "lost"}",server="a"}}' in metrics.text().decode()
            if found:
                await ear._heard(8, payload([chain(8)], positional=False))
                assert length(index) == 9
                await ear._heard(0, payload([chain(0)], positional=False))  # another one, which counts anew
                assert length(index) == 1
            await ears.close()
            context.destroy(0)
        teller.close()

    run(case())


def test_every_engine_of_a_server_is_heard(tmp_path: Path) -> None:
    async def case() -> None:
        tellers = [Teller(tmp_path, 100, suffix) for suffix in ("", "_dp1")]
        for number in range(3):
            tellers[1].tell(chain(number))
        tellers[0].tell(chain(0))
        with listening(**tellers[0].table, engines=2) as (ears, index, _, _):
            ears.tend()
            await until(lambda: length(index) == 3 and index.num_blocks() == {"a": 4})
            assert index.whole("a")
            tellers[1].tell(Cleared())
            await until(lambda: length(index) == 1)
            await ears.close()
        for teller in tellers:
            teller.close()

    run(case())


def test_one_that_goes_and_comes_back_is_listened_to_anew(tmp_path: Path) -> None:
    async def case() -> None:
        teller = Teller(tmp_path, 100)
        teller.tell(chain(0), chain(1))
        with listening(**teller.table) as (ears, index, fleet, _):
            ears.tend()
            await until(lambda: length(index) == 2)
            teller.close()
            await until(lambda: length(index) == 0)  # it has hung up
            teller = Teller(tmp_path, 100)
            teller.tell(chain(0))
            await until(lambda: length(index) == 1)
            fleet.replicas["a"].alive = False
            ears.tend()
            assert not index.follows("a")
            fleet.replicas["a"].alive = True
            ears.tend()
            await until(lambda: length(index) == 1)
            await ears.close()
        teller.close()

    run(case())


@pytest.mark.parametrize("tokenizes", [True, False])
def test_a_prompt_goes_to_who_says_that_it_has_it(tmp_path: Path, tokenizes: bool) -> None:
    """Nothing was ever sent there by this router."""

    async def case() -> None:
        text = "a long conversation about nothing " * 100
        mocks, teller = [Mock(name) for name in "abc"], Teller(tmp_path, 10)
        for mock in mocks:
            await mock.start()
            mock.tokenizes = tokenizes
        tokens = tokens_of(text)
        whole = len(tokens) // SIZE
        teller.tell(Cleared(), Stored(list(range(whole)), None, tokens[: whole * SIZE], SIZE))
        servers = [{"url": mock.url, "name": mock.name} for mock in mocks]
        servers[1] |= teller.table
        async with routed(*mocks, table={"server": servers}) as (client, router):
            await until(lambda: router._index.whole("b"))
            asked: list[tuple[str, dict[str, Any]]] = [
                (CHAT, {"messages": [{"role": "user", "content": text}]}),
                ("/v1/completions", {"prompt": text}),
                ("/v1/completions", {"prompt": tokens}),
            ]
            if tokenizes:  # what is wrong with one's prompt is nobody else's fault
                for _ in mocks:
                    async with client.post("/v1/completions", json={"model": "m", "prompt": [text, text]}) as answer:
                        assert answer.status == 200
            for path, fields in asked if tokenizes else asked[2:]:
                async with client.post(path, json={"model": "m", **fields}) as answer:
                    assert answer.headers["x-sapwood-server"] == "b"
                    assert answer.headers["x-sapwood-route"] == "cache_aware; held; attempt 1"
            if not tokenizes:
                for _ in range(3):
                    async with client.post(CHAT, json={"model": "m", **asked[0][1]}) as answer:
                        assert answer.status == 200
                refused = sum("messages" in body and "model" in body for mock in mocks for body in mock.bodies)
                assert 4 <= refused <= 6  # who does not is asked once
            told = "told" if tokenizes else "failed"
            assert f'sapwood_route_tokenized_total{{how="{told}"}}' in router.metrics.text().decode()
        teller.close()

    run(case())


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ({"events": "http://h:1"}, "events of h is an address like tcp"),
        ({"events_replay": "tcp://h:1"}, "is nothing without events"),
        ({"url": "dns+http://h", "events": "tcp://h:1"}, r"needs \* for the host"),
    ],
)
def test_addresses_that_cannot_be_are_named(server: dict[str, Any], why: str) -> None:
    from sapwood.base.errors import ConfigError

    with pytest.raises(ConfigError, match=why):
        checked({"server": [{"url": "http://h", **server}]}, "t.toml")
