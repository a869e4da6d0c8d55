"""What routers are told of the cache: what they come to know is what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.stores import Names
from sapwood.stores.events import Cleared, Events, Removed, Stored, payload
from tests import models
from tests.sim.test_scheduler import workload
from tests.sim.world import World
from tests.stores.test_engine import PROMPTS, say, started

zmq = pytest.importorskip("zmq")


class Router:
    """Believes what it is told, and keeps whole texts by the hash of their last block."""

    def __init__(self) -> None:
        self.texts: dict[int, tuple[int, ...]] = {}

    def hear(self, told: bytes) -> None:
        _, events, rank = msgspec.msgpack.decode(told)
        assert rank == 0
        for event in events:
            match event["type"]:
                case "BlockStored":
                    size, tokens = event["block_size"], event["token_ids"]
                    before = () if event["parent_block_hash"] is None else self.texts[event["parent_block_hash"]]
                    for place, number in enumerate(event["block_hashes"]):
                        before = (*before, *tokens[place * size : (place + 1) * size])
                        assert number not in self.texts, "it is there already"
                        self.texts[number] = before
                case "BlockRemoved":
                    for number in event["block_hashes"]:
                        del self.texts[number]
                case "AllBlocksCleared":
                    self.texts.clear()

    publish = hear

    def close(self) -> None:
        pass


def there(world: World) -> set[tuple[int, ...]]:
    """The texts of the full pages that all may share."""
    tree, found = world.kv.tree, set()
    stack = [(root, b"") for root in tree.roots.values() if root.key == b"\0"]
    while stack:
        node, text = stack.pop()
        for child in node.children.values():
            if len(child.key) == tree.page_bytes:
                whole = text + child.key
                found.add(tuple(memoryview(whole).cast("i").tolist()))
                stack.append((child, whole))
    return found


class Told(World):
    def __init__(self, **shape: Any) -> None:
        self.router = Router()
        super().__init__(**shape, stakes=self._stakes)

    def _stakes(self, slots: Slots) -> Sequence[Stake]:
        self.events = Events(self.kv, self.router, Names(b"toy"))
        return (self.events,)

    def add(self, prompt: Sequence[int], max_tokens: int = 8, **options: Any) -> int:  # type: ignore[override]
        space = "\0" if not options.pop("namespace", "") else "\0salt"
        return super().add(prompt, max_tokens, namespace=space, **options)


@pytest.mark.parametrize(
    "shape", [{}, {"num_pages": 20, "max_model_len": 64, "depth": 0}, {"poison": 7, "depth": 2}], ids=str
)
def test_a_router_knows_what_is_there(shape: dict[str, Any]) -> None:
    import random

    for seed in range(6):
        world = Told(**shape)
        workload(world, random.Random(seed), num_requests=12, longest=50, poison=shape.get("poison"))
        world.run()
        world.check_outputs()
        world.events.tidy()
        assert set(world.router.texts.values()) == there(world)
        world.kv.flush()
        world.events.tidy()
        assert not world.router.texts


def test_forms() -> None:
    events = [Stored([1, 2], None, [5, 6, 7, 8], 2), Removed([1]), Cleared()]
    at, told, rank = msgspec.msgpack.decode(payload(list(events), positional=True, clock=lambda: 3.5))
    assert (at, rank) == (3.5, 0)
    assert told == [
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None],
        ["BlockRemoved", [1], "GPU"],
        ["AllBlocksCleared"],
    ]


def test_published_and_again(tmp_path: Path) -> None:
    """Over sockets: a subscriber hears of an engine's pages, and what it has missed when it asks."""
    pub, again = f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/again"
    context = zmq.Context()
    sub, dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    sub.setsockopt(zmq.SUBSCRIBE, b"kv@")
    for socket, where in ((sub, pub), (dealer, again)):
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(where)
    asked = msgspec.json.encode({"endpoint": pub, "replay_endpoint": again}).decode()
    engine = started(models.save("llama", tmp_path / "model"), kv_events_config=asked, served_model_name=["tiny"])
    for number in range(600):  # what is published before the subscription has arrived is lost
        say(engine, [[1 + number % 32, *PROMPTS[0][1:20]]])
        if sub.poll(100):
            break
    say(engine, PROMPTS)

    dealer.send_multipart((b"", (0).to_bytes(8, "big")))
    router, numbers = Router(), []
    while True:
        _, number, told = dealer.recv_multipart()
        numbers.append(int.from_bytes(number, "big", signed=True))
        if numbers[-1] < 0:
            break
        router.hear(told)
    assert numbers == [*range(len(numbers) - 1), -1]
    assert {tuple(PROMPTS[0][:size]) for size in range(16, len(PROMPTS[0]), 16)} <= set(router.texts.values())

    engine.control("flush_cache")
    engine.tidy()
    heard = 0
    while router.texts:
        topic, number, told = sub.recv_multipart()
        if int.from_bytes(number, "big") >= len(numbers) - 1:  # else it was replayed
            router.hear(told)
            heard += 1
        assert topic == b"kv@127.0.0.1:8000@tiny"
    assert heard
    engine.shutdown()
    context.destroy(0)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("endpoint", "takes a JSON object"),
        ('{"endpoints": "tcp://*:1"}', "takes a JSON object"),
        ('{"buffer_steps": -1}', "takes a JSON object"),
        ('{"endpoint": "carrier://pigeon"}', "--kv-events-config: carrier"),
    ],
)
def test_what_is_refused(given: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        started(models.save("llama", tmp_path), kv_events_config=given)
    with pytest.raises(ConfigError, match="wants --enable-prefix-caching"):
        started(models.save("llama", tmp_path), kv_events_config="{}", prefix_caching=False)
    started(models.save("llama", tmp_path), kv_events_config='{"enable_kv_cache_events": false}').shutdown()
