"""The front's side of the engine: what is refused, how news are merged, how it ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

import pytest

from sapwood.base.errors import EngineDead, GenerationFailed, Overloaded, RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Control, Delta, Deltas, Reply, Submit, ToEngine
from sapwood.engine import pace
from sapwood.engine.client import AsyncEngine, Stream, check_request, copies
from tests.facts import make_facts

FACTS = make_facts(max_model_len=32, eos_ids=[2])


class Wire:
    """An engine whose other end is a list."""

    def __init__(self, max_live: int = 2) -> None:
        self.sent: list[ToEngine] = []
        self.engine = AsyncEngine(self._send, FACTS, max_live=max_live)

    def _send(self, message: ToEngine) -> None:
        self.sent.append(message)


async def collect(wire: Wire, tokens: list[int], params: SamplingParams) -> list[Delta]:
    async with aclosing(wire.engine.generate(tokens, params)) as deltas:
        return [delta async for delta in deltas]


def test_news_arrive_in_order_and_merge_while_nobody_listens() -> None:
    async def scenario() -> None:
        wire = Wire()
        task = asyncio.create_task(collect(wire, [5], SamplingParams(max_tokens=4, stop_token_ids=(7,))))
        await asyncio.sleep(0)
        (submit,) = wire.sent
        assert isinstance(submit, Submit) and submit.stop_ids == [7, 2]
        wire.engine.receive([Deltas([], [], [Delta(submit.id, [11], cached_tokens=3)])])
        wire.engine.receive([Deltas([submit.id, 999], [12, 0], [])])
        wire.engine.receive([Deltas([], [], [Delta(submit.id, [7], finish="stop", stop=7)])])
        deltas = await task
        assert [token for delta in deltas for token in delta.tokens] == [11, 12, 7]
        assert deltas[0].cached_tokens == 3 and deltas[-1].finish == "stop" and deltas[-1].stop == 7
        assert len(wire.sent) == 1, "nothing to abort"

    asyncio.run(scenario())


def test_leaving_early_aborts() -> None:
    async def scenario() -> None:
        wire = Wire()
        task = asyncio.create_task(collect(wire, [5], SamplingParams()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert wire.sent[1:] == [Abort([wire.sent[0].id])]  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_a_dead_engine_ends_everything() -> None:
    async def scenario() -> None:
        wire = Wire()
        running = asyncio.create_task(collect(wire, [5], SamplingParams()))
        asking = asyncio.create_task(wire.engine.control("status"))
        await asyncio.sleep(0)
        wire.engine.die("struck by lightning")
        for task in (running, asking):
            with pytest.raises(EngineDead, match="lightning"):
                await task
        with pytest.raises(EngineDead):
            await collect(wire, [5], SamplingParams())

    asyncio.run(scenario())


def test_too_many_requests_are_refused() -> None:
    async def scenario() -> None:
        wire = Wire(max_live=1)
        running = asyncio.create_task(collect(wire, [5], SamplingParams()))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await collect(wire, [5], SamplingParams())
        assert caught.value.retry_after is None, "nothing is known of how fast they end"
        running.cancel()
        await asyncio.wait([running])
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_who_is_refused_hears_how_long_those_before_should_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace, "monotonic", lambda: now)
    wire, listener = Wire(max_live=11), Listener()  # 8 run, 3 wait
    for _ in range(5):
        stream = wire.engine.submit([5], SamplingParams(), listener)
        wire.engine.receive([Deltas([], [], [Delta(stream.id, [7], finish="length")])])
        stream.close()
        now += 2.0
    for _ in range(11):
        wire.engine.submit([5], SamplingParams(), listener)
    with pytest.raises(Overloaded) as caught:
        wire.engine.submit([5], SamplingParams(), listener)
    assert caught.value.retry_after == 4 * 2.0


def test_control_gets_its_own_answer() -> None:
    async def scenario() -> None:
        wire = Wire()
        tasks = [asyncio.create_task(wire.engine.control(what)) for what in ("status", "check")]
        await asyncio.sleep(0)
        for message in reversed(wire.sent):
            assert isinstance(message, Control)
            wire.engine.receive([Reply(message.id, {"answers": message.what})])
        assert [await task for task in tasks] == [{"answers": "status"}, {"answers": "check"}]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("tokens", "params", "param"),
    [
        ([], SamplingParams(), "prompt"),
        ([5] * 32, SamplingParams(), "prompt"),
        ([100], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ([5] * 30, SamplingParams(max_tokens=3), "max_tokens"),
        ([5], SamplingParams(temperature=float("nan")), "temperature"),
        ([5], SamplingParams(temperature=float("inf")), "temperature"),
        ([5], SamplingParams(top_p=-0.1), "top_p"),
        ([5], SamplingParams(top_k=-2), "top_k"),
        ([5], SamplingParams(max_tokens=10**400), "max_tokens"),
        ([5], SamplingParams(n=1000), "n"),
        ([5], SamplingParams(min_tokens=3, max_tokens=2), "min_tokens"),
        ([5], SamplingParams(logprobs=65), "logprobs"),
        ([5], SamplingParams(logit_bias={100: 1.0}), "logit_bias"),
        ([5], SamplingParams(logit_bias={1: float("nan")}), "logit_bias"),
        ([5], SamplingParams(stop_token_ids=(100,)), "stop_token_ids"),
        ([5], SamplingParams(stop=("",)), "stop"),
        ([5], SamplingParams(repetition_penalty=0.0), "repetition_penalty"),
    ],
)
def test_what_cannot_be_served_is_named(tokens: list[int], params: SamplingParams, param: str) -> None:
    with pytest.raises(RequestError) as error:
        check_request(tokens, params, FACTS)
    assert error.value.param == param


def test_copies_have_seeds_of_their_own() -> None:
    assert [one.seed for one in copies(SamplingParams(n=3, seed=5))] == [5, 6, 7]
    assert [one.seed for one in copies(SamplingParams(n=2))] == [None, None]
    assert all(one.n == 1 for one in copies(SamplingParams(n=3)))


class Listener:
    """A follower that counts how often it is woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def test_merging_keeps_everything() -> None:
    stream = Stream(1, Listener(), lambda stream: None)
    assert stream.take() is None
    one, two = TokenLogprobs(1, -0.5, 1, [1], [-0.5]), TokenLogprobs(2, -0.1, 1, [2], [-0.1])
    stream.put(Delta(1, [1], cached_tokens=4, logprobs=[one], prompt_logprobs=[two]))
    stream.put_token(7)
    stream.put_token(8)
    stream.put(Delta(1, [2], logprobs=[two], finish="stop", stop=2))
    everything = Delta(
        1, [1, 7, 8, 2], finish="stop", cached_tokens=4, stop=2, logprobs=[one, two], prompt_logprobs=[two]
    )
    assert stream.take() == everything
    assert stream.finished and stream.take() is None


def test_random_batches_lose_and_reorder_nothing() -> None:
    """Whatever arrives together and whenever a follower takes: the same tokens, and one waking a batch."""
    random = Random(0)
    for _ in range(50):
        wire, listeners = Wire(max_live=8), [Listener() for _ in range(4)]
        # The last listener follows three generations, as a request with n = 3 does.
        streams = [wire.engine.submit([5], SamplingParams(), listeners[min(i, 3)]) for i in range(6)]
        said: dict[int, list[int]] = {stream.id: [] for stream in streams}
        heard: dict[int, list[int]] = {stream.id: [] for stream in streams}
        for _ in range(20):
            batch, concerned = [], set()
            for _ in range(random.randrange(4)):
                chosen = random.sample(streams, random.randrange(len(streams) + 1))
                tokens = [random.randrange(100) for _ in chosen]
                plain = random.randrange(len(chosen) + 1)
                batch.append(
                    Deltas(
                        [stream.id for stream in chosen[:plain]],
                        tokens[:plain],
                        [
                            Delta(stream.id, [token])
                            for stream, token in zip(chosen[plain:], tokens[plain:], strict=True)
                        ],
                    )
                )
                for stream, token in zip(chosen, tokens, strict=True):
                    said[stream.id].append(token)
                    concerned.add(stream.follower)
            before = [listener.woken for listener in listeners]
            wire.engine.receive(batch)
            after = [listener.woken for listener in listeners]
            assert [b - a for a, b in zip(before, after, strict=True)] == [one in concerned for one in listeners]
            for stream in random.sample(streams, random.randrange(len(streams) + 1)):
                if (delta := stream.take()) is not None:
                    heard[stream.id] += delta.tokens
        for stream in streams:
            if (delta := stream.take()) is not None:
                heard[stream.id] += delta.tokens
        assert heard == said


def test_a_request_that_fails_harms_only_itself() -> None:
    wire = Wire()
    streams = [wire.engine.submit([5], SamplingParams(), Listener()) for _ in range(2)]
    failed, fine = (stream.id for stream in streams)
    wire.engine.receive([Deltas([fine], [9], [Delta(failed, [], finish="error", error="not finite")])])
    with pytest.raises(GenerationFailed, match="not finite"):
        streams[0].take()
    assert streams[1].take() == Delta(fine, [9])
    for stream in streams:
        stream.close()
        stream.close()
    assert wire.sent[2:] == [Abort([fine])], "one that has ended needs no abort"


def test_the_largest_seed_has_successors() -> None:
    seeds = [one.check(vocab_size=100).seed for one in copies(SamplingParams(n=2, seed=2**64 - 1))]
    assert seeds == [2**64 - 1, 0]
