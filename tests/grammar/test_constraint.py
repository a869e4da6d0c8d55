"""Constraints: what they allow, where they begin, where they end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar import Constraint, Vocabulary
from sapwood.grammar.compiler import Compiled
from sapwood.grammar.trigger import Trigger
from tests.grammar.conftest import EOS, allowed

Begin = Callable[..., Constraint]


def say(constraint: Constraint, text: str) -> bool:
    """Whether the constraint takes the text, each token of which has to be among the allowed ones."""
    for token in constraint.compiled.vocabulary.tokenizer.tokenize_str(text):
        if token not in allowed(constraint) or not constraint.accept(token):
            return False
    return True


def test_a_choice_ends_by_itself_where_nothing_can_follow(begin: Begin) -> None:
    constraint = begin(Grammar.choice(["ab", "abc"]))
    assert say(constraint, "ab") and not constraint.done and EOS in allowed(constraint)
    assert say(constraint, "c") and constraint.done
    constraint = begin(Grammar.choice(["ab", "abc"]))
    assert say(constraint, "ab") and constraint.accept(EOS) and constraint.done


@pytest.mark.parametrize("text", ["a.b", "(", "[x]{2}|\\d", "^$", "a b\n", "é😀", '"', "#&-~/"])
def test_a_choice_is_taken_literally(begin: Begin, text: str) -> None:
    constraint = begin(Grammar.choice([text, "other"]))
    assert say(constraint, text) and constraint.done


def test_min_len_and_ignored_ends(begin: Begin) -> None:
    early = begin(Grammar.regex("a*"), min_len=7)
    assert EOS not in allowed(early) and say(early, "a")
    assert EOS not in allowed(early) and say(early, "a")
    assert EOS in allowed(early)
    assert EOS not in allowed(begin(Grammar.regex("a*"), stop_ids=()))
    nothing_else = begin(Grammar.choice(["", "a"]), min_len=99)
    assert say(nothing_else, "a") and nothing_else.done


def test_whitespace_is_bounded(begin: Begin) -> None:
    schema = Grammar.json({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert say(begin(schema), '{"a": 1') and say(begin(schema), '{\n        "a":\n1') and say(begin(schema), '{"a":1}')
    assert not say(begin(schema), "{  ") and not say(begin(schema), "{\n\n")
    assert not say(begin(schema, compact_json=True), '{"a": ')
    loose = json.loads(schema.text) | {"x-guidance": {"whitespace_flexible": True}}
    assert say(begin(Grammar.json(loose)), "{     \n\n   ")


def test_forced_tokens(begin: Begin, vocabulary: Vocabulary) -> None:
    text = '{"name":true}'
    schema = {"type": "object", "properties": {"name": {"const": True}}, "required": ["name"]}
    constraint = begin(Grammar.json(schema | {"additionalProperties": False}), compact_json=True)
    forced = constraint.forced()
    tokens = vocabulary.tokenizer.tokenize_str(text)
    assert forced and tokens[: len(forced)] == forced
    for token in forced:
        assert allowed(constraint) == {token}
        assert constraint.accept(token)
    assert begin(Grammar.choice(["name", "true"])).forced() == []


def test_rollback(begin: Begin) -> None:
    for grammar in (Grammar.json({"type": "array", "items": {"type": "boolean"}}), Grammar(
        kind="regex", text="a[b]*c", after="</"
    )):  # fmt: skip
        constraint = begin(grammar)
        rng = random.Random(0)
        seen = []
        for _ in range(12):
            now = allowed(constraint)
            seen.append((now, constraint.position))
            choices = sorted(now - {EOS})
            if constraint.done or not choices:
                break
            slash = constraint.compiled.vocabulary.tokenizer.tokenize_str("</")[0]
            constraint.accept(slash if slash in choices and rng.random() < 0.3 else rng.choice(choices))
        while len(seen) > 1:
            seen.pop()
            constraint.rollback(1)
            assert (allowed(constraint), constraint.position) == seen[-1] and not constraint.done


def test_rollback_takes_back_what_went_wrong(begin: Begin, vocabulary: Vocabulary) -> None:
    a, b, slash = (vocabulary.tokenizer.tokenize_str(text)[0] for text in ("a", "b", "</"))
    for grammar, tokens in (
        (Grammar.regex("ab*"), [a, b]),
        (Grammar(kind="regex", text="ab*", after="</"), [b, slash, a]),
    ):
        constraint = begin(grammar)
        for token in tokens:
            before = allowed(constraint)
            assert constraint.accept(token)
        for count, wanted in (0, allowed(constraint)), (1, before):
            assert not constraint.accept(slash) and constraint.error
            constraint.rollback(count)
            assert not constraint.error and allowed(constraint) == wanted
        assert constraint.position == 4 + len(tokens) and constraint.accept(tokens[-1])


def test_a_token_that_is_not_allowed_is_an_error(begin: Begin) -> None:
    constraint = begin(Grammar.choice(["ab"]))
    assert not constraint.accept(EOS) and "cannot be followed" in constraint.error
    assert len(allowed(constraint)) >= 300  # the request is over; its row must only stay finite


def test_the_grammar_begins_behind_a_text(begin: Begin) -> None:
    constraint = begin(Grammar(kind="json_schema", text='{"type": "object"}', after="</think>"))
    assert say(constraint, "So </thin, or <</think") and constraint.forced() == []
    pieces = constraint.compiled.vocabulary.pieces
    now = {pieces[id] for id in allowed(constraint) if id < len(pieces)}
    assert b">" in now and b">{" in now and b">\n" not in now and b"x" in now
    assert say(constraint, ">{") and not say(constraint, "x")


@settings(max_examples=60, deadline=None)
@given(st.text("ab<>", min_size=1, max_size=6), st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=12))
def test_a_trigger_is_found_as_in_the_whole_text(after: str, parts: list[str]) -> None:
    trigger = Trigger(after.encode(), [], lambda rest: True)
    state, said = 0, ""
    for part in parts:
        state, rest = trigger.read(state, part.encode())
        said += part
        if rest is not None:
            at = said.index(after)
            assert said[at + len(after) :].encode() == rest
            return
    assert after not in said


BAD = {
    "not JSON": Grammar(kind="json_schema", text="{"),
    "an object or a boolean": Grammar(kind="json_schema", text="3"),
    "incompatible|Unsatisfiable": Grammar.json({"type": "string", "enum": [1]}),
    "leads out of the schema": Grammar.json({"$ref": "https://example.com/other.json"}),
    "unclosed group": Grammar.regex("(a"),
    "look-around": Grammar.regex("(?=a)b"),
    "nothing to choose": Grammar.choice([]),
    "list of strings": Grammar(kind="choice", text="[1]"),
    "unknown name": Grammar.rules("start: foo"),
    "GBNF": Grammar.rules("root ::= ["),
    "structures": Grammar(kind="structural_tag", text="{}"),
    "begins with none": Grammar(
        kind="structural_tag", text=json.dumps({"structures": [{"begin": "<a"}], "triggers": ["<b"]})
    ),
    "at most": Grammar.regex("a" * 600_000),
    "x-guidance": Grammar.json({"x-guidance": 3}),
}


@pytest.mark.parametrize("reason", [*BAD][1:])
def test_bad_grammars_say_what_is_wrong(vocabulary: Vocabulary, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        Compiled(vocabulary, BAD[reason], compact_json=False)


def test_other_kinds(begin: Begin) -> None:
    assert say(begin(Grammar.rules('root ::= "a" [0-9]+')), "a12")
    assert not say(begin(Grammar.rules('root ::= "a" [0-9]+')), "ab")
    assert say(begin(Grammar.rules('start: "a" B\nB: /[0-9]+/')), "a12")
    assert say(begin(Grammar.regex(r"^\d{2}-x/$")), "12-x/") and not say(begin(Grammar.regex(r"\d")), "٣")
    structure = {"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}
    tag = Grammar(kind="structural_tag", text=json.dumps({"structures": [structure], "triggers": ["<f"]}))
    assert say(begin(tag), "one <f>12</f> two <f>3</f>") and say(begin(tag), "none")
    assert not say(begin(tag), "<f>x") and not say(begin(tag), "<fx")
    assert EOS in allowed(begin(tag))


def test_anything_with_a_schema_s_method_will_do() -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, str]:
            return {"type": "integer"}

    assert Grammar.json(Model) == Grammar.json({"type": "integer"})
    assert Grammar.json() == Grammar.json({"type": "object"})
