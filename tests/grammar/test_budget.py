"""Thoughts end when their budget is spent, whatever else is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood import LLM, Grammar, SamplingParams
from sapwood.base.errors import RequestError
from sapwood.base.grammar import Thinking
from sapwood.grammar import Vocabulary
from sapwood.grammar.budget import BudgetConstraint
from tests.grammar.test_generation import HELLO, make

END = "\n</think>"


def may(budget: BudgetConstraint) -> list[int]:
    bits = np.zeros((1, budget.width), np.int32)
    assert budget.begin(bits[0]) is None
    budget.finish(bits[0])
    return [int(id) for id in np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))]


def test_by_itself(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.tokenize_str
    leave = tuple(encode(END))
    thinking = Thinking(begin="<think>", end="</think>", leave=leave, budget=3)
    budget = BudgetConstraint(thinking, vocabulary, position=5)
    for token in encode("Hm, 12345 <thin"):
        assert len(may(budget)) >= vocabulary.tokenizer.vocab_size and not budget.forced()
        assert budget.accept(token)
    for token in encode("k>xyz"):
        assert not budget.forced() and budget.accept(token)
    assert budget.forced() == list(leave)
    for token in leave:
        assert may(budget) == [token] and budget.accept(token)
    for token in encode("yes, <think>"):  # again, though nothing is left
        assert not budget.forced() and budget.accept(token)
    assert budget.forced() == list(leave) and not budget.done and not budget.error


def test_thoughts_that_end_in_time(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.tokenize_str
    thinking = Thinking(begin="<think>", end="</think>", leave=tuple(encode(END)), budget=20, open=True)
    budget = BudgetConstraint(thinking, vocabulary, position=5)
    for token in encode("a</think>" + 30 * "x"):
        assert not budget.forced() and budget.accept(token)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return make(tiny_model)


def bounded(llm: LLM, budget: int, *, open: bool = True, leave: str = END, **more: Any) -> SamplingParams:
    tokens = tuple(llm.text.special_text(leave))
    thinking = Thinking(begin="<think>", end="</think>", leave=tokens, budget=budget, open=open)
    return SamplingParams(**({"max_tokens": 60, "seed": 3, "thinking": thinking, "ignore_eos": True} | more))


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 1}, {"depth": 1, "jump_forward": False}, {"max_total_tokens": 448, "max_model_len": 448}],
    ids=str,
)
@pytest.mark.parametrize("logprobs", [None, 1])
def test_in_the_engine(tiny_model: Path, llm: LLM, options: dict[str, Any], logprobs: int | None) -> None:
    other = make(tiny_model, **options)
    budgets = [0, 1, 7, 30, *([200] * 4 if "max_total_tokens" in options else [])]
    seeds = [3, 3, 3, 3, 4, 5, 6, 7]
    params = [
        bounded(llm, one, logprobs=logprobs, max_tokens=min(one + 60, 300), seed=seed)
        for one, seed in zip(budgets, seeds, strict=False)
    ]
    free = SamplingParams(max_tokens=40, seed=3, ignore_eos=True)
    *found, beside = other.chat([HELLO] * (len(budgets) + 1), [*params, free])
    assert beside.token_ids == llm.chat(HELLO, free)[0].token_ids
    leave = llm.text.special_text(END)
    for budget, generation in zip(budgets, found, strict=True):
        ids = generation.token_ids
        assert ids[budget : budget + len(leave)] == leave
        assert len(ids) == min(budget + 60, 300) and (
            logprobs is None or len(generation.outputs[0].logprobs) == len(ids)
        )
        if budget < 40:
            assert ids[:budget] == beside.token_ids[:budget], "thoughts are as they would be"
    if "max_total_tokens" in options:
        assert other._engine.stats().counters["preemptions"] > 0


def test_with_a_grammar(llm: LLM) -> None:
    behind = Grammar(kind="regex", text="(yes|no)!", after="</think>")
    generation = llm.chat(HELLO, bounded(llm, 12, grammar=behind, ignore_eos=False, logit_bias={257: -100.0}))[0]
    thoughts, _, answer = generation.text.partition("</think>")
    assert answer in ("yes!", "no!") and generation.finish_reason == "stop"
    assert len(generation.token_ids) == 12 + len(END) + len(answer) and thoughts
    inside = Grammar.parts(
        {"seq": [{"maybe": {"seq": [{"text": "<think>"}, {"until": "</think>"}]}}, {"regex": "[0-9]{3}"}]}
    )
    for seed in range(4):
        params = bounded(llm, 5, open=False, leave="</think>", grammar=inside, ignore_eos=False, seed=seed)
        text = llm.chat(HELLO, params)[0].text
        before, _, answer = text.rpartition("</think>")
        assert answer.isdecimal() and len(answer) == 3
        assert not before or (before.startswith("<think>") and len(llm.text.encode(before[7:])) <= 5)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"budget": -1}, "thinking.budget"),
        ({"budget": 2**31}, "thinking.budget"),
        ({"leave": ()}, "thinking"),
        ({"end": ""}, "thinking"),
        ({"leave": (300,)}, "thinking.leave"),
    ],
)
def test_bounds_that_cannot_be_kept(changed: dict[str, Any], param: str) -> None:
    fields: dict[str, Any] = {"begin": "<think>", "end": "</think>", "leave": (7,), "budget": 3} | changed
    with pytest.raises(RequestError) as raised:
        SamplingParams(thinking=Thinking(**fields)).check(vocab_size=300)
    assert raised.value.param == param
