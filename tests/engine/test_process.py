"""The engine process: how the front talks to it, and what it does between and after steps."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sapwood.base.errors import EngineDead
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Control, Deltas, Failed, FromEngine, Reply, Sharing, Stats, Submit, ToEngine
from sapwood.engine import keeper, process
from sapwood.engine.line import MOST_AT_ONCE, Line, Post
from sapwood.engine.process import Service
from sapwood.engine.pulse import Pulse
from tests.waiting import eventually, within


def connected(line: Line, post: Post) -> None:
    """Until they are, what is sent finds nobody."""

    def heard() -> bool:
        with contextlib.suppress(EngineDead):
            line.send(Abort([1]))
        return post.wait(0.1) and bool([*post.receive()])

    eventually(heard)


async def send_for_ever(line: Line) -> None:
    while True:
        line.send(Abort([1]))
        await asyncio.sleep(0.01)


def test_sending_to_an_engine_that_is_gone_does_not_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        line = Line(str(tmp_path))
        post = Post(str(tmp_path))
        connected(line, post)
        post.close()
        with pytest.raises(EngineDead):
            await within(send_for_ever(line))
        line.close()

    asyncio.run(scenario())


def test_a_front_that_does_not_read_never_stops_the_engine(tmp_path: Path) -> None:
    """And hears everything in order when it reads again, a bounded number of messages at a time."""

    async def scenario() -> None:
        line, post = Line(str(tmp_path)), Post(str(tmp_path))
        total = 5000
        for number in range(total):
            post.send(Deltas([number], [0], []))
        heard: list[int] = []
        arrived = asyncio.Event()
        with line.calling(arrived.set):
            while len(heard) < total:
                messages = line.receive()
                assert len(messages) <= MOST_AT_ONCE
                for message in messages:
                    assert isinstance(message, Deltas)
                    heard += message.ids
                if not messages:
                    await within(arrived.wait())
                    arrived.clear()
        assert heard == [*range(total)]
        post.close()
        line.close()

    asyncio.run(scenario())


def test_what_many_requests_share_crosses_once(tmp_path: Path) -> None:
    """And each has it, though its owner changes it in between."""
    line, post = Line(str(tmp_path)), Post(str(tmp_path))
    bias, words = dict.fromkeys(range(100), 1.0), tuple((id, 3) for id in range(200))
    shared = SamplingParams(logit_bias=bias)
    several = [
        SamplingParams(seed=1), shared, SamplingParams(logit_bias={5: 1.0}), msgspec.structs.replace(shared, seed=2),
        SamplingParams(allowed_token_ids=tuple(range(300)), forbidden=words), SamplingParams(forbidden=words), shared,
    ]  # fmt: skip
    wanted = [
        Submit(id, [5], msgspec.convert(msgspec.to_builtins(one), SamplingParams)) for id, one in enumerate(several)
    ]
    connected(line, post)
    for id, params in enumerate(several):
        line.send(Submit(id, [5], params))
    bias[7] = 2.0
    line.send(Submit(7, [5], shared))
    found: list[ToEngine] = []
    eventually(lambda: found.extend(m for m in post.receive() if isinstance(m, Submit)) or len(found) == 8)
    *same, changed = (message.params for message in found if isinstance(message, Submit))
    assert found[:-1] == wanted and changed.logit_bias == bias
    assert same[1].logit_bias is same[3].logit_bias and same[3].seed == 2
    post.close()
    line.close()


def test_last_words_are_heard_after_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        line, post = Line(str(tmp_path)), Post(str(tmp_path))
        ended: asyncio.Task[int] = asyncio.create_task(asyncio.sleep(0, 1))
        await ended
        asyncio.get_running_loop().call_later(0.05, post.send, Failed("no such model", True))
        with pytest.raises(ValueError, match="no such model"):
            await keeper._await_ready(line, ended)
        post.close()
        line.close()

    asyncio.run(scenario())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """And what it was to share with others is not taken from those before."""
    line, post = Line(str(tmp_path)), Post(str(tmp_path))
    connected(line, post)
    words = SamplingParams(allowed_token_ids=tuple(range(300)))
    encode = msgspec.msgpack.encode
    line.send(Submit(1, [5], words))
    unreadable = [
        ["lists", {}, "what", []],
        encode(Sharing.of(Submit(2, [5], words))),
        ["submit", 3, "five", {}],
        ["sharing", ["submit", 4, "five", {}]],
        ["control", 5, 6],
        ["nobody", 7],
        b"\xc1",
    ]
    for sent in unreadable:
        line._down.send(sent if isinstance(sent, bytes) else encode(sent))
    line.send(Submit(8, [5], msgspec.structs.replace(words, forbidden=((1, 2),))))
    taken: list[ToEngine] = []
    eventually(lambda: taken.extend(post.receive()) or len(taken) == 2)
    assert [message.id for message in taken if isinstance(message, Submit)] == [1, 8]
    said: list[FromEngine] = []
    eventually(lambda: said.extend(line.receive()) or len(said) == 4)
    assert [one.deltas[0].id for one in said if isinstance(one, Deltas)] == [2, 3, 4]
    assert all(one.deltas[0].finish == "error" for one in said if isinstance(one, Deltas))
    assert [one.id for one in said if isinstance(one, Reply)] == [5]
    post.close()
    line.close()


def test_the_folder_is_gone_before_an_orphan_may_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sockets").mkdir()
    serving, left = threading.Event(), []

    class Orphaned(threading.Event):
        def set(self) -> None:
            left.append((tmp_path / "sockets").exists())

    monkeypatch.setattr(process.os, "read", lambda descriptor, size: b"")
    monkeypatch.setattr(process.os, "_exit", lambda code: None)
    process._watch_front(serving, Orphaned(), str(tmp_path / "sockets"))
    assert left == [False]


class FakePost:
    """Messages that have arrived, and what was sent."""

    def __init__(self) -> None:
        self.arrived: list[ToEngine] = []
        self.sent: list[FromEngine] = []
        self.waits: list[float | None] = []

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)

    def wait(self, seconds: float | None = None) -> bool:
        self.waits.append(seconds)
        return bool(self.arrived)

    def receive(self) -> Any:
        while self.arrived:
            yield self.arrived.pop(0)


class FakeLoop:
    """An engine whose requests want `length` steps each; it notes what it was asked to do."""

    def __init__(self, *, length: int = 2, pieces: int = 0) -> None:
        self.done: list[str] = []
        self.pieces = pieces
        self._length = length
        self._left: dict[int, int] = {}
        self.still = False

    @property
    def occupied(self) -> bool:
        return bool(self._left)

    @property
    def idle(self) -> bool:
        return self.still or not self._left

    def submit(self, message: Submit) -> None:
        self.done.append("submit")
        self._left[message.id] = self._length

    def abort(self, message: Abort) -> None:
        for id in message.ids:
            self._left.pop(id, None)

    def control(self, what: str, given: Any) -> dict[str, Any]:
        return {"did": what}

    def step(self) -> list[Deltas]:
        self.done.append("step")
        ids = [*self._left]
        self._left = {id: left - 1 for id, left in self._left.items() if left > 1}
        return [Deltas(ids, [7] * len(ids), [])]

    def audit(self) -> int:
        self.done.append("audit")
        return 0

    def tidy(self) -> bool:
        self.done.append("tidy")
        self.pieces -= 1
        return self.pieces > 0

    def stats(self) -> Stats:
        return Stats(0, 0, {}, {}, [])


def service_of(loop: FakeLoop, post: FakePost) -> Service:
    return Service(loop, post, Pulse(lambda beat: None, lambda: 0), threading.Event())  # type: ignore[arg-type]


def test_idle_time_is_used_piece_by_piece_and_then_waited() -> None:
    """For as long as nothing comes: nobody is woken for nothing."""
    loop, post = FakeLoop(pieces=3), FakePost()
    service = service_of(loop, post)
    for _ in range(4):
        service.iterate()
    assert loop.done == ["tidy"] * 3 and not post.waits
    assert [type(message) for message in post.sent] == [Stats], "how things are at the beginning"
    service.iterate()
    service.iterate()
    assert loop.done == ["tidy"] * 3 and post.waits == [None, None] and len(post.sent) == 1


def test_a_request_goes_before_idle_work_and_the_audit_waits_for_rest() -> None:
    loop, post = FakeLoop(pieces=5), FakePost()
    service = service_of(loop, post)
    service.iterate()
    service.iterate()
    post.arrived.append(Submit(1, [5], SamplingParams()))
    service.iterate()
    service.iterate()
    assert loop.done == ["tidy", "submit", "step", "step"] and not post.waits
    service.iterate()
    assert post.waits == [process.AUDIT_SECONDS], "somebody may follow at once"
    service.iterate()
    service.iterate()
    assert loop.done[4:] == ["audit", "tidy"]
    assert [message.ids for message in post.sent if isinstance(message, Deltas)] == [[1], [1]]
    assert isinstance(post.sent[-1], Stats), "what is told last is how things are"


def test_what_an_operator_did_is_tidied_up_behind() -> None:
    """A cache that was flushed is told of, say, though nobody asks for a token."""
    loop, post = FakeLoop(), FakePost()
    service = service_of(loop, post)
    for _ in range(4):
        service.iterate()
    post.arrived.append(Control(1, "flush_cache", {}))
    for _ in range(4):
        service.iterate()
    assert loop.done == ["tidy", "tidy"]


def test_an_engine_that_stands_still_says_that_it_lives_while_somebody_waits_for_it() -> None:
    loop, post = FakeLoop(), FakePost()
    loop.still, service = True, service_of(loop, post)
    post.arrived.append(Submit(1, [5], SamplingParams()))
    for _ in range(9):
        service.iterate()
    assert loop.done == ["submit", "tidy"]
    assert post.waits[0] == process.HEARTBEAT_SECONDS and len(post.sent) >= 3
    assert all(isinstance(message, Stats) for message in post.sent)
    post.arrived.append(Abort([1]))
    for _ in range(4):
        service.iterate()
    assert post.waits[-1] is None


def test_a_crowd_does_not_hold_up_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals beyond the time for them wait for the next turn; none is lost and their order stays."""
    now = [0.0]

    def clock() -> float:
        now[0] += process.INTAKE_SECONDS / 10
        return now[0]

    monkeypatch.setattr(process, "monotonic", clock)
    loop, post = FakeLoop(length=10**6), FakePost()
    service = service_of(loop, post)
    post.arrived += [Submit(id, [5], SamplingParams()) for id in range(200)]
    while post.arrived:
        service.iterate()
    between = np.diff([-1, *np.flatnonzero(np.array(loop.done) == "step")]) - 1
    assert between.max() <= 11 and between.sum() == 200
    last = next(message for message in reversed(post.sent) if isinstance(message, Deltas))
    assert last.ids == [*range(200)]


def test_questions_are_answered_while_idle() -> None:
    loop, post = FakeLoop(), FakePost()
    post.arrived.append(Control(3, "status"))
    service = service_of(loop, post)
    service.iterate()
    assert post.sent == [Reply(3, {"did": "status"})]
    service.iterate()
    assert isinstance(post.sent[-1], Stats), "it may have changed something"
