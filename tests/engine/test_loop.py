"""The loop on the fake device: order, overlap, failures, accounting."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.base.plan import LatePart, Outcome, Plan
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.wire import Abort, Delta, Deltas, Submit
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import DeviceLost, Engine
from sapwood.engine.pause import Pause
from sapwood.executor.fake import FakeExecutor, Work
from sapwood.scheduler import Scheduler
from tests.sim.world import expected, group

VOCAB = 100


class Recorder(FakeExecutor):
    """Also writes down the order of calls, and raises in the steps that it is told to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[str, int]] = []
        self.broken: set[tuple[str, int]] = set()

    def _call(self, what: str, plan: Plan) -> None:
        self.calls.append((what, plan.number))
        if (what, plan.number) in self.broken:
            raise RuntimeError("out of luck")

    def forward(self, plan: Plan) -> Work:
        self._call("forward", plan)
        return super().forward(plan)

    def sample(self, work: Work, late: tuple[LatePart, ...] = ()) -> None:
        self._call("sample", work.plan)
        super().sample(work, late)

    def result(self, work: Work) -> Outcome:
        self._call("result", work.plan)
        return super().result(work)


def make(depth: int = 1) -> tuple[Engine, Recorder]:
    groups = [group(None, 4)]
    device = Recorder.of(groups, [64], vocab_size=VOCAB, max_num_seqs=4, max_model_len=64)
    slots, kv = Slots(4, 64), KVCache(groups, [64])
    pause = Pause()
    scheduler = Scheduler(slots, [KVStake(kv, slots), pause], max_num_batched_tokens=32)
    intake = Intake(longest=64, vocab_size=VOCAB, seed=0)
    commands = {"flush_cache": lambda: {"freed_pages": kv.flush()}, **pause.commands}
    engine = Engine(
        scheduler, device, intake, depth=depth, gauges=(kv.gauges,), pages=kv.pages, commands=commands,
        status=pause.status,
    )  # fmt: skip
    return engine, device


def drain(engine: Engine) -> dict[int, list[Delta]]:
    news: dict[int, list[Delta]] = {}
    while not engine.idle:
        take(news, engine.step())
    return news


def take(news: dict[int, list[Delta]], said: list[Deltas]) -> None:
    for deltas in said:
        for delta in [*map(lambda id, t: Delta(id, [t]), deltas.ids, deltas.tokens), *deltas.deltas]:
            news.setdefault(delta.id, []).append(delta)


def tokens(news: list[Delta]) -> list[int]:
    return [token for delta in news for token in delta.tokens]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_step_is_launched_before_as_many_earlier_ones_are_read(depth: int) -> None:
    engine, device = make(depth)
    engine.submit(Submit(1, [5, 6, 7], SamplingParams(max_tokens=8)))
    news = drain(engine)
    assert tokens(news[1]) == expected([5, 6, 7], 11, (), VOCAB)
    flying = [device.calls.index(("forward", n + depth)) < device.calls.index(("result", n)) for n in range(1, 6)]
    assert all(flying)
    for n in range(1, 8 - depth):
        assert device.calls.index(("result", n)) < device.calls.index(("forward", n + depth + 1))


@pytest.mark.parametrize("call", ["forward", "sample", "result"])
def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(call: str) -> None:
    engine, device = make()
    device.broken = {(call, 4)}
    for id in (1, 2):
        engine.submit(Submit(id, [5, 6, 7], SamplingParams(max_tokens=8)))
    news = drain(engine)
    assert [news[id][-1].finish for id in (1, 2)] == ["error", "error"]
    assert "out of luck" in (news[1][-1].error or "")
    engine.submit(Submit(3, [5, 6, 7], SamplingParams(max_tokens=8)))
    again = drain(engine)[3]
    assert tokens(again) == expected([5, 6, 7], 11, (), VOCAB) and again[0].cached_tokens == 0
    assert engine.audit() == 0


def test_a_device_that_keeps_failing_is_given_up() -> None:
    engine, device = make()
    device.broken = {("forward", number) for number in range(100)}
    for id in range(2):
        engine.submit(Submit(id, [5], SamplingParams(max_tokens=8)))
        engine.step()
    engine.submit(Submit(2, [5], SamplingParams(max_tokens=8)))
    with pytest.raises(DeviceLost, match="3 steps in a row"):
        engine.step()


@pytest.mark.parametrize("call", ["forward", "sample"])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_had_landed_when_a_step_failed_is_told(call: str, depth: int) -> None:
    """A request that ends in the very turn in which a later step fails: it has ended well, and nobody waits for it."""
    for length in range(1, 9):
        engine, device = make(depth)
        engine.submit(Submit(1, [5, 6, 7], SamplingParams(max_tokens=length)))
        engine.submit(Submit(2, [8, 9], SamplingParams(max_tokens=20)))
        # The turn that samples this plan lands the one with the first request's last token before it.
        device.broken = {(call, length + depth)}
        news = drain(engine)
        finishes = [news[id][-1].finish for id in (1, 2)]
        assert finishes[1] == "error"
        if call == "sample":
            assert finishes[0] == "length"
            assert tokens(news[1]) == expected([5, 6, 7], 3 + length, (), VOCAB)
        assert engine.audit() == 0


@pytest.mark.parametrize("bad", [[], [5] * 64, [VOCAB], [-1]])
def test_a_bad_message_is_answered_with_an_error(bad: list[int]) -> None:
    engine, _ = make()
    refused = engine.submit(Submit(1, bad, SamplingParams()))
    assert refused is not None and refused.finish == "error" and refused.error
    assert engine.idle


def test_abort_of_waiting_running_and_unknown() -> None:
    engine, _ = make()
    for id in range(6):
        engine.submit(Submit(id, [5, id], SamplingParams(max_tokens=20)))
    engine.step()
    assert {delta.id for delta in engine.abort(Abort([0, 5, 77]))} == {0, 5}
    news = drain(engine)
    assert all(tokens(news[id]) == expected([5, id], 22, (), VOCAB) for id in range(1, 5))
    assert engine.audit() == 0


def test_counters_add_up() -> None:
    engine, _ = make()
    for id in range(3):
        engine.submit(Submit(id, [9] * 10 + [id], SamplingParams(max_tokens=4)))
    drain(engine)
    stats = engine.stats()
    assert stats.counters["output_tokens"] == 12 and stats.counters["finished"] == 3
    assert stats.counters["prompt_tokens"] + stats.counters["cached_tokens"] == 33
    assert stats.running == stats.waiting == 0
    total, free, evictable = stats.pages[0]
    assert total == free + evictable == 63


def test_control() -> None:
    engine, _ = make()
    engine.submit(Submit(1, [5] * 9, SamplingParams(max_tokens=4)))
    drain(engine)
    assert engine.control("status")["finished"] == 1
    assert engine.control("flush_cache")["freed_pages"] == 3  # the last token of an answer is never fed
    assert engine.control("check") == {"repaired_pages": 0}
    assert "unknown" in engine.control("dance")["error"]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("retract", [False, True])
def test_who_is_paused_goes_on_as_if_nothing_had_happened(depth: int, retract: bool) -> None:
    """Those who run, those who wait and those who come meanwhile; nothing is lost, and what is idle may be audited."""
    engine, _ = make(depth)
    for id in range(1, 7):
        engine.submit(Submit(id, [5, id], SamplingParams(max_tokens=20)))
    before: dict[int, list[Delta]] = {}
    for _ in range(5):
        take(before, engine.step())
    engine.control("pause")
    if retract:
        assert engine.control("retract") == {"retracted": 4}
    while not engine.idle:  # what is in flight still lands
        take(before, engine.step())
    status = engine.control("status")
    assert (status["paused"], status["running"], status["waiting"]) == (True, *((0, 6) if retract else (4, 2)))
    assert engine.stats().paused and engine.audit() == 0
    engine.control("flush_cache")
    assert engine.submit(Submit(7, [5, 7], SamplingParams(max_tokens=20))) is None
    assert engine.abort(Abort([2]))[0].finish == "abort" and engine.idle
    engine.control("continue")
    later = drain(engine)
    for id in (1, 3, 4, 5, 6, 7):
        assert tokens(before.get(id, []) + later[id]) == expected([5, id], 22, (), VOCAB)
    assert engine.audit() == 0 and not engine.stats().paused


def test_who_is_here_may_end_while_the_others_are_held() -> None:
    engine, _ = make()
    for id in (1, 2):
        engine.submit(Submit(id, [5, id], SamplingParams(max_tokens=9)))
    engine.step()
    engine.control("hold")
    for id in (3, 4):
        engine.submit(Submit(id, [5, id], SamplingParams(max_tokens=9)))
    ended: set[int] = set()
    while engine.control("status")["running"]:
        ended |= {one.id for deltas in engine.step() for one in deltas.deltas if one.finish}
    assert ended == {1, 2}
    status = engine.control("status")
    assert (status["held"], status["waiting"], status["paused"]) == (2, 2, False)
    engine.step()  # has nothing to do but to wait
    engine.abort(Abort([4]))
    assert engine.control("status")["held"] == 1
    engine.control("continue")
    assert tokens(drain(engine)[3]) == expected([5, 3], 11, (), VOCAB)
    assert engine.control("status")["held"] == 0


def test_who_looks_sees_requests_as_lanes() -> None:
    engine, _ = make()
    for id in range(6):
        engine.submit(Submit(id, [5, id, *[6] * 9], SamplingParams(max_tokens=20), priority=id))
    assert [lane["phase"] for lane in engine.control("live")["lanes"]] == ["aside"] * 6
    for _ in range(5):
        engine.step()
    told = engine.control("live")
    lanes = {lane["id"]: lane for lane in told["lanes"]}
    assert [lanes[id]["phase"] for id in range(6)] == ["output"] * 4 + ["waiting"] * 2
    assert all(lane["prompt"] == 11 and lane["limit"] == 31 and lane["age"] >= 0 for lane in lanes.values())
    assert 0 < lanes[0]["output"] <= lanes[0]["computed"] - 10 and lanes[0]["cached"] == 0
    assert (lanes[5]["output"], lanes[5]["computed"], lanes[5]["cached"], lanes[5]["priority"]) == (0, 0, -1, 5)
    assert (told["running"], told["waiting"], told["pages"]) == (4, 2, engine.stats().pages)


def test_a_long_prompt_is_in_its_prompt_until_its_last_chunk() -> None:
    engine, _ = make(0)
    engine.submit(Submit(1, [5] * 50, SamplingParams(max_tokens=4)))
    phases = []
    while not engine.idle:
        engine.step()
        phases += [(lane["phase"], lane["computed"]) for lane in engine.control("live")["lanes"]]
    assert phases == [("prompt", 32), ("output", 50), ("output", 51), ("output", 52)]


def test_two_engines_in_one_process_do_not_meet() -> None:
    (one, _), (two, _) = make(0), make(2)
    one.submit(Submit(1, [5, 6, 7], SamplingParams(max_tokens=12)))
    two.submit(Submit(1, [8, 9], SamplingParams(max_tokens=9)))
    found: dict[int, list[int]] = {1: [], 2: []}
    while not (one.idle and two.idle):
        for number, engine in ((1, one), (2, two)):
            for deltas in engine.step():
                found[number] += deltas.tokens + [t for delta in deltas.deltas for t in delta.tokens]
    assert sorted(found[1]) == sorted(expected([5, 6, 7], 15, (), VOCAB))
    assert sorted(found[2]) == sorted(expected([8, 9], 11, (), VOCAB))


@pytest.mark.parametrize("assigned", [False, True])
def test_a_failed_plan_leaves_nothing_behind(assigned: bool) -> None:
    engine, _ = make()
    fits = engine.scheduler.slots.assign

    def assign(request: Request, rank: tuple[int, int]) -> int:
        if assigned:
            fits(request, rank)
        raise RuntimeError("out of luck")

    engine.scheduler.slots.assign = assign  # type: ignore[method-assign]
    engine.submit(Submit(1, [5, 6, 7], SamplingParams()))
    ((lost,),) = [news.deltas for news in engine.step()]
    assert lost.finish == "error" and engine.idle
    engine.scheduler.slots.assign = fits  # type: ignore[method-assign]
    engine.submit(Submit(2, [5, 6, 7], SamplingParams(max_tokens=8)))
    assert tokens(drain(engine)[2]) == expected([5, 6, 7], 11, (), VOCAB)
    assert engine.audit() == 0


def test_more_least_tokens_than_the_context_holds() -> None:
    engine, _ = make()
    engine.submit(Submit(1, [5, 6, 7], SamplingParams(min_tokens=2**31 - 1), stop_ids=list(range(VOCAB))))
    news = drain(engine)[1]
    assert news[-1].finish == "length" and len(tokens(news)) == 61


def test_stop_ids_outside_the_vocabulary_are_left_out() -> None:
    intake = Intake(longest=64, vocab_size=VOCAB, seed=0)
    request = intake.request(Submit(1, [5], SamplingParams(), stop_ids=[-1, 3, VOCAB]))
    assert isinstance(request, Request) and request.stop_ids == (3,)
