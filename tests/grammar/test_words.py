"""Tokens that may not be drawn are not, by themselves or beside a grammar, and all others are as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood import LLM, Grammar, SamplingParams
from sapwood.base.errors import RequestError
from sapwood.base.grammar import Thinking
from sapwood.grammar import Constraint, Vocabulary
from sapwood.grammar.constraint import Follows
from sapwood.grammar.words import Words
from tests.grammar.conftest import EOS
from tests.grammar.test_generation import make

SIZE = 300
PROMPT = "Once upon a time"


def may(one: Follows) -> set[int]:
    bits = np.zeros((1, one.width), np.int32)
    matcher = one.begin(bits[0])
    if matcher is not None:
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    one.finish(bits[0])
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())


def words(inner: Follows | None = None, *, min_len: int = 0, **params: Any) -> Words:
    return Words(
        SamplingParams(**params), inner, vocab_size=SIZE, position=5, min_len=min_len, stop_ids=(EOS,)
    )  # fmt: skip


def test_alone() -> None:
    assert may(words(allowed_token_ids=(4, 290, 31, 32, 4))) == {4, 31, 32, 290}
    assert may(words(forbidden=((7,), (9, 8)))) == set(range(SIZE)) - {7}
    early = words(allowed_token_ids=(EOS, 4), min_len=6)
    assert may(early) == {4} and early.accept(4) and may(early) == {EOS, 4}
    assert may(words(allowed_token_ids=(EOS,), min_len=6)) == {EOS}, "too soon, but all there is"


def test_runs_end_where_they_would_be_complete() -> None:
    one = words(allowed_token_ids=(2, 3, 4), forbidden=((2, 3), (3, 2, 4), (2, 2, 3, 4), (2, 2)))
    for token, after in [(3, {2, 3, 4}), (2, set()), (3, {2, 3, 4}), (4, {2, 3, 4}), (2, {4})]:
        assert one.accept(token)
        if after:
            assert may(one) == after
    assert one.position == 10
    one.rollback(3)
    assert one.position == 7 and may(one) >= set(range(SIZE)) and one.error, "3 2: nothing may follow"
    assert not one.accept(4)
    one.rollback(1)
    assert not one.error and one.position == 6 and may(one) == {2, 3, 4} and one.accept(4), "behind 3 all is well"


def test_beside_a_grammar(vocabulary: Vocabulary, begin: Callable[..., Constraint]) -> None:
    a, b, ab, aba = (vocabulary.tokenizer.tokenize_str(text)[0] for text in ("a", "b", "ab", "aba"))
    for forbidden, first, then in [
        ((), {a, ab, aba}, {b}), (((ab,), (aba,)), {a}, {b}), (((a, b), (aba,)), {a, ab}, None),
    ]:  # fmt: skip
        one = words(begin(Grammar.regex("(ab)+")), forbidden=forbidden)
        assert may(one) == first and one.accept(a)
        if then is None:
            assert not one.error and may(one) and "leave no token" in one.error and not one.accept(b)
        else:
            assert may(one) == then and one.accept(b) and EOS in may(one) and not one.done
    closed = words(begin(Grammar.regex("ab|b")), allowed_token_ids=(a, b))
    assert closed.accept(b) and closed.done


def test_what_a_grammar_forces_is_cut(vocabulary: Vocabulary, begin: Callable[..., Constraint]) -> None:
    tokens = vocabulary.tokenizer.tokenize_str("name: x!")
    for forbidden, count in [((), len(tokens)), ((tuple(tokens[-3:]),), len(tokens) - 1), (((tokens[0],),), 0)]:
        one = words(begin(Grammar.regex("name: x!")), forbidden=forbidden)
        assert one.forced() == tokens[:count] and one.position == 5


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"allowed_token_ids": ()}, "allowed_token_ids"),
        ({"allowed_token_ids": (SIZE,)}, "allowed_token_ids"),
        ({"allowed_token_ids": (3,), "forbidden": ((3,), (4, 5))}, "allowed_token_ids"),
        ({"forbidden": ((),)}, "forbidden"),
        ({"forbidden": ((-1,),)}, "forbidden"),
        ({"forbidden": ((1, 2),) * 1025}, "forbidden"),
    ],
)
def test_what_cannot_be(params: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        SamplingParams(**params).check(vocab_size=SIZE)
    assert raised.value.param == param


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return make(tiny_model)


def twin(llm: LLM, params: SamplingParams, count: int) -> list[int]:
    """The output token by token, each drawn among those that a loop in Python finds."""
    prompt, output = llm.text.encode(PROMPT), []
    vocabulary = params.allowed_token_ids or range(llm.facts.vocab_size)
    for _ in range(count):
        shut = {run[-1] for run in params.forbidden if output[len(output) - len(run) + 1 :] == list(run[:-1])}
        one = SamplingParams(
            max_tokens=1, seed=params.seed, temperature=params.temperature, ignore_eos=True,
            allowed_token_ids=tuple(id for id in vocabulary if id not in shut),
        )  # fmt: skip
        output += llm.generate([prompt + output], one)[0].token_ids
    return output


@pytest.fixture(scope="module")
def wanted(llm: LLM) -> list[tuple[SamplingParams, list[int]]]:
    """Requests, the first of them free, and what the twin makes of them."""

    def asked(seed: int, **more: Any) -> SamplingParams:
        return SamplingParams(**{"max_tokens": 24, "seed": seed, "ignore_eos": True} | more)

    free = llm.generate(PROMPT, asked(1))[0].token_ids
    few = tuple(range(20, 90, 7))
    runs = tuple(dict.fromkeys(zip(free[::3], free[1::3], strict=False)))
    several = [
        asked(1, forbidden=(*runs, (free[6],))),
        asked(2, allowed_token_ids=few, temperature=0.0),
        asked(3, allowed_token_ids=few[:3], forbidden=((few[0], few[1]), (few[1], few[1], few[0]), (few[2], few[2]))),
    ]
    return [(asked(1), free), *((one, twin(llm, one, 24)) for one in several)]


@pytest.mark.parametrize("options", [{}, {"depth": 2, "max_num_batched_tokens": 16}], ids=str)
def test_in_the_engine(
    tiny_model: Path, wanted: list[tuple[SamplingParams, list[int]]], options: dict[str, Any]
) -> None:
    few = tuple(range(20, 90, 7))
    odd = SamplingParams(
        allowed_token_ids=few, logprobs=1, repetition_penalty=1.2, seed=1, ignore_eos=True, max_tokens=24
    )
    *found, last = make(tiny_model, **options).generate([PROMPT] * 5, [*(params for params, _ in wanted), odd])
    assert [one.token_ids for one in found] == [tokens for _, tokens in wanted]
    assert set(last.token_ids) <= set(few) and len(last.outputs[0].logprobs) == 24


def test_where_nothing_is_left_only_that_request_ends(llm: LLM) -> None:
    """With the reason, be it the grammar or the request alone that leaves nothing."""
    digits = tuple(llm.text.encode("0123456789"))
    stuck = SamplingParams(grammar=Grammar.regex("[0-9]{3}x"), allowed_token_ids=digits, seed=1)
    alone = SamplingParams(allowed_token_ids=digits[:1], forbidden=(digits[:1] * 3,), max_tokens=9, seed=1)
    fine = SamplingParams(grammar=Grammar.regex("[0-9]{3}"), allowed_token_ids=digits, seed=1, max_tokens=9)
    first, second, third = (one.outputs[0] for one in llm.generate([PROMPT] * 3, [stuck, alone, fine]))
    assert "no token that may follow in its grammar" in (first.error or "")
    assert "no token that may follow" in (second.error or "") and "grammar" not in (second.error or "")
    assert third.error is None and third.text.isdecimal() and len(third.text) == 3


@pytest.mark.parametrize("grammar", [None, Grammar.regex("[0-9]{2}x")])
def test_an_end_where_nothing_is_left_is_none(llm: LLM, grammar: Grammar | None) -> None:
    """Even if it is drawn there: an output that is not what was asked for is not told as complete."""
    (digit, *_), (end, *_) = llm.text.encode("7"), llm.facts.eos_ids
    stuck = SamplingParams(
        grammar=grammar, allowed_token_ids=(digit,), forbidden=((digit,) * 3,), logit_bias={end: 100.0}, seed=1
    )
    (found,) = llm.generate(PROMPT, stuck)[0].outputs
    assert found.finish_reason == "error" and "no token that may follow" in (found.error or "")


def test_thoughts_end_all_the_same(llm: LLM) -> None:
    leave = tuple(llm.text.special_text("</think>"))
    thinking = Thinking(begin="<think>", end="</think>", leave=leave, budget=4, open=True)
    params = SamplingParams(
        thinking=thinking, allowed_token_ids=tuple(llm.text.encode("ab")), max_tokens=30, ignore_eos=True, seed=1
    )
    before, end, behind = llm.generate(PROMPT, params)[0].text.partition("</think>")
    assert end and len(before) == 4 and not set(before + behind) - set("ab")


def test_words_are_runs_of_tokens(llm: LLM) -> None:
    text = llm.text
    runs = text.runs_of(["cat ", " cat", "a"])
    assert runs == tuple(dict.fromkeys(tuple(text.encode(word)) for word in ("cat", " cat", "a", " a")))
    with pytest.raises(RequestError, match="no letters"):
        text.runs_of([" "])
