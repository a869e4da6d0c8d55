"""An engine in this process, behind the face that one in another process has."""

from __future__ import annotations

import asyncio

import pytest

from sapwood.base.errors import EngineDead, GenerationFailed, RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.engine.client import Stream
from sapwood.engine.inprocess import InProcess
from tests.engine.test_loop import VOCAB, Recorder, make
from tests.facts import make_facts
from tests.sim.world import expected

FACTS = make_facts(vocab_size=VOCAB)  # max_model_len is more than the engine takes


class Listener:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.failure: Exception | None = None
        self.stream: Stream

    def wake(self) -> None:
        try:
            delta = self.stream.take()
        except Exception as error:
            self.failure = error
            return
        if delta is not None:
            self.tokens += delta.tokens
            self.finish = delta.finish


def begin() -> tuple[InProcess, Recorder]:
    engine, device = make()
    return InProcess(engine, FACTS), device


def ask(engine: InProcess, tokens: list[int], max_tokens: int = 8) -> Listener:
    listener = Listener()
    listener.stream = engine.submit(tokens, SamplingParams(max_tokens=max_tokens, temperature=0), listener)
    return listener


def test_followers_are_woken_by_steps() -> None:
    engine, _ = begin()
    listeners = [ask(engine, [5, id]) for id in range(6)]
    refused = ask(engine, [5] * 70)
    while any(listener.finish is None for listener in listeners):
        engine.step()
    assert [listener.tokens for listener in listeners] == [expected([5, id], 10, (), VOCAB) for id in range(6)]
    assert isinstance(refused.failure, GenerationFailed) and "1 to 63 tokens" in str(refused.failure)
    with pytest.raises(RequestError, match="outside the vocabulary"):
        ask(engine, [VOCAB])


def test_who_leaves_is_aborted() -> None:
    engine, device = begin()
    ask(engine, [5, 6], 60).stream.close()
    left, stayed = ask(engine, [5, 7], 50), ask(engine, [5, 8], 4)
    engine.step()
    left.stream.close()
    engine.drain()
    assert stayed.finish == "length" and left.finish is None
    assert len(device.calls) < 3 * 20


def test_a_lost_device_ends_everything() -> None:
    engine, device = begin()
    device.broken = {("forward", number) for number in range(100)}
    for id in range(3):
        last = ask(engine, [5, id])
        engine.step()
    assert isinstance(last.failure, EngineDead)
    engine.drain()
    with pytest.raises(EngineDead, match="3 steps in a row"):
        ask(engine, [5])


def test_it_can_be_asked() -> None:
    engine, _ = begin()
    assert asyncio.run(engine.control("check")) == {"repaired_pages": 0}
