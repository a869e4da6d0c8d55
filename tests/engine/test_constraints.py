"""Restricted requests through the loop: their grammars are compiled beside it, and what goes wrong harms only them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Landed
from sapwood.base.wire import Abort, Delta, Submit
from sapwood.cache import KVCache, KVStake
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine
from sapwood.executor.fake import FakeExecutor
from sapwood.grammar import Compiler, Constraint, Constraints, GrammarStake, Vocabulary, constraints
from sapwood.grammar.constraints import Head
from sapwood.scheduler import Scheduler
from tests.engine.test_loop import drain, tokens
from tests.grammar.conftest import EOS, spec
from tests.sim.world import group
from tests.waiting import SECONDS

VOCAB = 300
PHONE = Grammar.regex(r"\d{3}-\d{4}")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(spec())


def make(vocabulary: Callable[[], Vocabulary], *, depth: int = 1, jump: bool = True) -> Engine:
    groups = [group(None, 4)]
    device = FakeExecutor.of(groups, [128], vocab_size=VOCAB, max_num_seqs=4, max_model_len=128)
    restrictions = Constraints(Compiler(vocabulary), device.allocate_masks, jump=jump)
    slots = Slots(4, 128)
    stakes = [KVStake(KVCache(groups, [128]), slots), GrammarStake(restrictions, slots)]
    scheduler = Scheduler(slots, stakes, max_num_batched_tokens=32)
    intake = Intake(longest=128, vocab_size=VOCAB, seed=0, grammars=True)
    return Engine(scheduler, device, intake, depth=depth, gauges=(restrictions.gauges,))


def submit(engine: Engine, id: int, grammar: Grammar | None = PHONE, **more: object) -> None:
    params = SamplingParams(**({"max_tokens": 60, "grammar": grammar} | more))  # type: ignore[arg-type]
    assert engine.submit(Submit(id, [id + 5, 9], params, [EOS])) is None


def text(vocabulary: Vocabulary, news: list[Delta]) -> str:
    said = tokens(news)
    return b"".join(vocabulary.pieces[token] for token in said if token != EOS).decode()


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("jump", [True, False])
def test_outputs_match(vocabulary: Vocabulary, depth: int, jump: bool) -> None:
    engine = make(lambda: vocabulary, depth=depth, jump=jump)
    schema = {"type": "object", "properties": {"name": {"enum": ["true", "false"]}}, "required": ["name"]}
    closed = schema | {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    for id in range(1, 7):
        submit(engine, id, PHONE if id % 3 else Grammar.json(closed))
    submit(engine, 7, None)
    news = drain(engine)
    for id in range(1, 7):
        assert news[id][-1].finish == "stop", "complete, without an end of sequence"
        said = text(vocabulary, news[id])
        if id % 3:
            assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", said)
        else:
            assert json.loads(said)["name"] in ("true", "false")
    assert news[7][-1].finish in ("length", "stop")
    stats = engine.stats()
    assert stats.counters["constrained"] == 6 and stats.counters["compiled_grammars"] == 2
    assert (stats.counters["forced_tokens"] > 0) == jump


def test_a_grammar_is_compiled_while_others_run(vocabulary: Vocabulary) -> None:
    may = threading.Event()

    def slow() -> Vocabulary:
        assert may.wait(SECONDS)
        return vocabulary

    engine = make(slow)
    submit(engine, 1)
    submit(engine, 2)
    submit(engine, 3, None)
    done: list[Delta] = []
    while not any(delta.id == 3 and delta.finish for delta in done):
        done += [delta for news in engine.step() for delta in news.deltas]
    assert not engine.idle and engine.stats().waiting == 2 and engine.stats().running == 0
    assert engine.abort(Abort([2])) == [Delta(2, [], finish="abort")]
    assert all(not news.ids and not news.deltas for news in engine.step()), "nothing to do, but not idle"
    may.set()
    news = drain(engine)
    assert list(news) == [1] and re.fullmatch("[0-9]{3}-[0-9]{4}", text(vocabulary, news[1]))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_abort_in_the_middle_of_an_output_harms_nobody_else(vocabulary: Vocabulary, depth: int) -> None:
    engine = make(lambda: vocabulary, depth=depth, jump=False)
    submit(engine, 1, Grammar.regex("[a-z]{50}"))
    submit(engine, 2, Grammar.regex("[a-z]{50}"))
    begun: list[Delta] = []
    while not {1, 2} <= {delta.id for delta in begun}:
        begun += [delta for news in engine.step() for delta in news.deltas]
    assert [(delta.id, delta.finish) for delta in engine.abort(Abort([1]))] == [(1, "abort")]
    submit(engine, 3)
    news = drain(engine)
    assert set(news) == {2, 3} and engine.idle and engine.stats().running == 0
    said = text(vocabulary, [*(delta for delta in begun if delta.id == 2), *news[2]])
    assert re.fullmatch("[a-z]{50}", said) and re.fullmatch("[0-9]{3}-[0-9]{4}", text(vocabulary, news[3]))


def test_what_cannot_be_compiled_ends_with_the_reason(vocabulary: Vocabulary) -> None:
    engine = make(lambda: vocabulary)
    submit(engine, 1, Grammar.regex("(a"))
    submit(engine, 2)
    news = drain(engine)
    assert news[1][-1].finish == "error" and "unclosed" in str(news[1][-1].error)
    assert news[2][-1].finish == "stop" and engine.counters["errors"] == 1


def test_without_a_tokenizer_only_restricted_requests_fail() -> None:
    def none() -> Vocabulary:
        raise GrammarError("the model's tokenizer cannot be read")

    engine = make(none)
    submit(engine, 1)
    submit(engine, 2, None)
    news = drain(engine)
    assert "tokenizer" in str(news[1][-1].error) and news[2][-1].finish in ("length", "stop")


def test_a_grammar_that_takes_too_long_ends_alone(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "SLOW_SECONDS", -1.0)
    engine = make(lambda: vocabulary)
    submit(engine, 1)
    submit(engine, 2, None)
    news = drain(engine)
    assert news[1][-1].finish == "error" and "takes too long" in str(news[1][-1].error)
    assert news[2][-1].finish in ("length", "stop")


def test_an_engine_without_grammars_says_so() -> None:
    engine = make(lambda: Vocabulary(spec()))
    engine.intake.grammars = False
    refused = engine.submit(Submit(1, [5], SamplingParams(grammar=PHONE)))
    assert refused is not None and "no grammars" in str(refused.error)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_spoiled_grammar_is_compiled_anew_for_those_who_go_on(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """A matcher that runs out of its limits spoils what it shares: each of the others goes on alone, where it was."""
    grammar = Grammar.regex("[a-z]{12}[0-9]{4}")
    wanted = {}
    for broken in (False, True):
        engine = make(lambda: vocabulary, depth=depth)
        finish = Constraint.finish

        def spoil(self: Constraint, bits_W: Any, finish: Any = finish) -> None:
            finish(self, bits_W)
            if self.position >= 8 and not self._alone:
                self.error, self.compiled.spoiled = "out of fuel", True
                bits_W.fill(-1)

        if broken:
            monkeypatch.setattr(Constraint, "finish", spoil)
        for id in range(1, 4):
            submit(engine, id, grammar)
        news = drain(engine)
        assert all(news[id][-1].finish == "stop" for id in range(1, 4))
        said = {id: text(vocabulary, news[id]) for id in range(1, 4)}
        assert said == wanted or not broken
        wanted = said
        assert engine.stats().counters["compiled_grammars"] == (4 if broken else 1)
        assert engine.stats().counters["constrained"] == 3
        submit(engine, 9, grammar)
        assert drain(engine)[9][-1].finish == "stop"
        assert engine.audit() == 0


def test_an_abort_while_a_grammar_is_compiled_anew(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, may, make_anew, finish = make(lambda: vocabulary), threading.Event(), Compiler._make, Constraint.finish

    def slow(self: Compiler, grammar: Grammar, **how: Any) -> Any:
        assert self.num_compiled == 0 or may.wait(30)
        return make_anew(self, grammar, **how)

    def spoil(self: Constraint, bits_W: Any) -> None:
        finish(self, bits_W)
        if self.position >= 6 and not self._alone:
            self.error, self.compiled.spoiled = "out of fuel", True
            bits_W.fill(-1)

    monkeypatch.setattr(Compiler, "_make", slow)
    monkeypatch.setattr(Constraint, "finish", spoil)
    for id in (1, 2):
        submit(engine, id, Grammar.regex("[a-z]{30}"))
    engine.step()
    while engine.stats().running or not engine.counters["steps"]:
        engine.step()
    assert engine.stats().waiting == 2
    assert engine.abort(Abort([1])) == [Delta(1, [], finish="abort")]
    may.set()
    news = drain(engine)
    assert news[2][-1].finish == "stop" and 1 not in news and engine.audit() == 0 and engine.idle


def test_whose_grammar_fails_alone_too_ends_with_the_reason(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(lambda: vocabulary)
    finish = Constraint.finish

    def spoil(self: Constraint, bits_W: Any) -> None:
        finish(self, bits_W)
        if self.position >= 6:
            self.error, self.compiled.spoiled = "out of fuel", True
            bits_W.fill(-1)

    monkeypatch.setattr(Constraint, "finish", spoil)
    submit(engine, 1, Grammar.regex("[a-z]{30}"))
    submit(engine, 2, None)
    news = drain(engine)
    assert news[1][-1].finish == "error" and "out of fuel" in str(news[1][-1].error)
    assert news[2][-1].finish in ("length", "stop")


@pytest.mark.parametrize("right", [False, True])
def test_what_goes_wrong_behind_a_draft_counts_where_the_draft_was_right(vocabulary: Vocabulary, right: bool) -> None:
    """Behind "ab" nothing may follow, which is found out before it is known whether the draft comes to be."""
    a, b, c, d = (vocabulary.tokenizer.tokenize_str(one)[0] for one in "abcd")
    params = SamplingParams(grammar=Grammar.regex("a(bd|c+)"), forbidden=((d,),))
    request = Request(1, np.array([5], np.int32), params, limit=40, stop_ids=(EOS,))
    ours = Constraints(Compiler(lambda: vocabulary), lambda rows, width: np.zeros((rows, width or 10), np.int32))
    while (problem := ours.begin(request)) is None:
        ours.wait(SECONDS)
    masks_MW = ours.masks([Head(request, 1, [a, b])])
    assert (
        not problem and (masks_MW[2] == -1).all() and not request.constraint.error and request.constraint.position == 1
    )
    rulings = ours.accept([Landed(0, request, [a, b, EOS] if right else [a, c], 0, ended=right)])
    assert ("no token that may follow" in request.constraint.error) == right
    assert {row: ruling.error for row, ruling in rulings.items()} == ({0: request.constraint.error} if right else {})
    assert right or request.constraint.position == 3
    ours.close()
