"""Grammars that would take much of what all share are refused, with the reason, before they are compiled or when tried."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar import compiler as compiler_room
from sapwood.grammar.compiler import Compiled, Compiler
from sapwood.grammar.constraint import Constraint
from sapwood.grammar.size import MOST_REPEATS, MOST_TEXT
from sapwood.grammar.vocabulary import Vocabulary, VocabularySpec
from tests.grammar.conftest import spec
from tests.waiting import SECONDS

LONG = "abc 1" * 20_000
assert len(LONG) > MOST_TEXT


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(spec())


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.regex("(a{900}){900}"), "repetitions"),
        (Grammar.regex(f"((a|bc){{{MOST_REPEATS // 4}}}){{3}}"), "repetitions"),
        (Grammar.json({"type": "string", "pattern": "^(a{901}){901}$"}), "repetitions"),
        (Grammar.json({"patternProperties": {"^(a{901}){901}$": {}}}), "repetitions"),
        (Grammar.json({"$ref": "#"}), "NoExtensionBias"),
        (Grammar.rules("root ::= root"), "NoExtensionBias"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_refused(vocabulary: Vocabulary, grammar: Grammar, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        Compiled(vocabulary, grammar, compact_json=False)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.choice(["a" * 200, "b"]),
        Grammar.regex("[a-z]{0,3000}x"),
        Grammar.regex("(a{90}|b+){100}"),
        Grammar.regex(r"(\d\.[^a]){2000}"),
        Grammar.rules("start: /[a-z]{9000}/"),
        Grammar.json({"type": "string", "description": LONG}),
        Grammar.json({"type": "string", "maxLength": 20000}),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not(vocabulary: Vocabulary, grammar: Grammar) -> None:
    assert Compiled(vocabulary, grammar, compact_json=False).forcing


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.choice(["b", LONG]),
        Grammar.json({"const": LONG}),
        Grammar.json({"enum": [{"b": [LONG]}]}),
        Grammar.json({"type": "object", "properties": {LONG: {}}, "additionalProperties": False, "required": [LONG]}),
        Grammar.regex("abc" * 3000),
        Grammar.rules(f'root ::= "{LONG[:60_000]}"'),
        Grammar.rules(f'start: "{LONG}"'),
        Grammar(kind="parts", text=json.dumps({"seq": [{"text": LONG}, {"json": {"const": LONG}}, {"free": True}]})),
        Grammar.regex(f"a{{{MOST_REPEATS}}}"),
        Grammar.regex("x(?:a[b]){3000}"),
        Grammar.json({"type": "string", "pattern": "^(ab){5000,6000}$"}),
        Grammar.rules("start: /a{9000}b?/"),
        Grammar.rules(f"start: /{LONG}/"),
        Grammar.rules('start: ("a" "b"){9000}'),
        Grammar.rules('root ::= "a"{9000}'),
        Grammar(kind="parts", text=json.dumps({"seq": [{"regex": "a{9000}"}, {"free": True}]})),
        Grammar.rules('root ::= "a" root'),
        Grammar.rules('start: "a" start'),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_long_and_endless_stretches_are_followed_a_token_at_a_time(vocabulary: Vocabulary, grammar: Grammar) -> None:
    compiled = Compiled(vocabulary, grammar, compact_json=False)
    constraint = Constraint(compiled, position=0)
    bits_W = np.empty(vocabulary.width, np.int32)
    for _ in range(300):
        assert not compiled.forcing and constraint.forced() == []
        matcher = constraint.begin(bits_W)
        assert matcher is not None
        matcher.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        constraint.finish(bits_W)
        assert not constraint.error
        bits = np.unpackbits(bits_W.view(np.uint8), bitorder="little")
        if not constraint.accept(int(np.flatnonzero(bits)[0])):
            break
    assert not constraint.error and constraint.position == 300


@pytest.mark.parametrize("eos_ids", [(-1,), (10**6,), (255, 299, 10**6), ()])
def test_ends_that_the_tokenizer_does_not_have(eos_ids: tuple[int, ...]) -> None:
    """Not written, and not forbidden: among the padded rows of the model, beyond them, negative."""
    usual = spec()
    made = Vocabulary(VocabularySpec(usual.tokenizer, (*usual.eos_ids, *eos_ids), 320))
    assert set(usual.eos_ids) <= set(made.eos_ids) and not set(made.eos_ids) & {-1, 10**6, 299}
    Compiled(made, Grammar.choice(["ab", "ba"]), compact_json=False)


def test_what_is_kept_is_counted_as_it_is(vocabulary: Vocabulary) -> None:
    """Grammars of a few bytes that compile to much push one another out."""
    compiler = Compiler(lambda: vocabulary, cache_bytes=24 << 20)
    for count in range(40):
        compiler.compile(Grammar.regex(f"(ab?){{{4000 + count}}}")).result(SECONDS)
    assert compiler._num_bytes <= 24 << 20
    assert sum(kept.num_bytes for kept in compiler._kept.values()) == compiler._num_bytes
    compiler.close()


def test_what_followed_grammars_find_out_is_counted_too(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its share of what the process has grown by meanwhile, no more than its tokens can take, and the oldest go."""
    resident = 100 << 20
    monkeypatch.setattr(compiler_room, "_resident", lambda: resident)
    compiler = Compiler(lambda: vocabulary, cache_bytes=4 << 20)
    grammars = [Grammar.regex(f"[ab]{{0,{count}}}c") for count in (900, 901, 902)]
    kept = [compiler.compile(grammar).result(SECONDS) for grammar in grammars]
    before = [one.num_bytes for one in kept]
    a = vocabulary.tokenizer.tokenize_str("a")[0]
    for compiled, count in zip(kept, (300, 100, 0), strict=True):
        constraint = Constraint(compiled, position=0)
        assert all(constraint.accept(a) for _ in range(count))
    resident += 1 << 20
    compiler.compile(grammars[2])
    grown = [one.num_bytes - size for one, size in zip(kept, before, strict=True)]
    assert grown[0] == 3 * grown[1] and grown[2] == 0 and (1 << 20) - 400 <= sum(grown) <= 1 << 20
    resident += 1 << 20
    compiler.compile(grammars[2])
    assert [one.num_bytes - size for one, size in zip(kept, before, strict=True)] == grown, "of something else"
    constraint = Constraint(kept[1], position=0)
    assert all(constraint.accept(a) for _ in range(800))
    resident += 1 << 30
    compiler.compile(grammars[1])
    assert kept[1].num_bytes - before[1] - grown[1] == 800 * (8 << 10)
    assert list(compiler._kept) == [grammars[1]] and compiler._num_bytes == kept[1].num_bytes
    compiler.close()
