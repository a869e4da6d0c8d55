"""Compiling beside others: the cache, and what hostile grammars get."""

from __future__ import annotations

import asyncio

import pytest

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar import Checker, Compiler, Vocabulary
from tests.grammar.conftest import spec
from tests.waiting import SECONDS, eventually

# Without an end in sight: the product of the factors is the number of states to be found.
HOSTILE = {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}, {"multipleOf": 997}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_same_grammar_is_compiled_once(compiler: Compiler) -> None:
    first = compiler.compile(Grammar.json({"type": "integer"})).result(SECONDS)
    assert compiler.compile(Grammar.json({"type": "integer"})).result(0) is first
    assert compiler.num_compiled == 1 and compiler.seconds > 0
    assert compiler.compile(Grammar.json({"type": "string"})).result(SECONDS) is not first


def test_the_cache_is_bounded(vocabulary: Vocabulary) -> None:
    compiler = Compiler(lambda: vocabulary, cache_bytes=200_000)
    first = compiler.compile(Grammar.regex("a")).result(SECONDS)
    for text in "bcdef":
        compiler.compile(Grammar.regex(text)).result(SECONDS)
    assert compiler.compile(Grammar.regex("f")).done()
    assert compiler.compile(Grammar.regex("a")).result(SECONDS) is not first
    compiler.close()


def test_errors_are_not_kept(compiler: Compiler) -> None:
    for _ in range(2):
        with pytest.raises(GrammarError, match="unclosed"):
            compiler.check(Grammar.regex("(a"))
    with pytest.raises(GrammarError, match="unclosed"):
        compiler.compile(Grammar.regex("(a")).result(SECONDS)


def test_a_vocabulary_is_made_once_and_when_it_is_needed(vocabulary: Vocabulary) -> None:
    made: list[Vocabulary] = []

    def make() -> Vocabulary:
        made.append(vocabulary)
        return vocabulary

    compiler = Compiler(make)
    assert not made
    for text in "ab":
        compiler.check(Grammar.regex(text))
    assert len(made) == 1
    eager = Compiler(make, at_once=True)
    eager.close()  # ends its threads when they have done what they are doing
    eventually(lambda: len(made) == 2)
    compiler.close()


def test_a_vocabulary_that_cannot_be_made_is_everybody_s_error() -> None:
    def fail() -> Vocabulary:
        raise GrammarError("no tokenizer")

    compiler = Compiler(fail)
    with pytest.raises(GrammarError, match="no tokenizer"):
        compiler.compile(Grammar.regex("a")).result(SECONDS)


@pytest.mark.anyio
async def test_hostile_grammars_are_refused_in_time_and_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = Checker(spec, seconds=1.0)
    try:
        await checker.check(Grammar.regex("first"))  # the process is there now
        hostile = [
            asyncio.create_task(checker.check(Grammar.json(HOSTILE | {"title": str(number)}))) for number in range(3)
        ]
        await asyncio.sleep(0)  # they have been asked first
        await checker.check(Grammar.json({"type": "object"}))
        assert not any(task.done() for task in hostile), "the harmless one had to wait"
        for task in hostile:
            with pytest.raises(GrammarError, match="more than 1 s"):
                await task
        monkeypatch.setattr(checker, "_ask", None)  # refusals are kept: nobody is asked again
        with pytest.raises(GrammarError, match="more than 1 s"):
            await checker.check(Grammar.json(HOSTILE | {"title": "0"}))
    finally:
        await checker.close()


@pytest.mark.anyio
async def test_memory_is_bounded_too() -> None:
    checker = Checker(spec, seconds=60.0, memory=32 << 20)
    try:
        with pytest.raises(GrammarError, match="memory"):
            await checker.check(Grammar.json({"type": "integer", "multipleOf": 999983}))
        await checker.check(Grammar.regex("a"))
    finally:
        await checker.close()


@pytest.mark.anyio
async def test_a_checker_that_has_died_is_started_again() -> None:
    checker = Checker(spec)
    try:
        await checker.check(Grammar.regex("a"))
        assert checker._process is not None and checker._reading is not None
        checker._process.kill()
        await checker._reading
        await checker.check(Grammar.regex("b"))
        with pytest.raises(GrammarError, match="unclosed"):
            await checker.check(Grammar.regex("(b"))
    finally:
        await checker.close()
