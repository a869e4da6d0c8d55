"""What grammars of calls let a model write is what the parser of the same family reads, and it validates."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sapwood.base.grammar import Grammar
from sapwood.grammar import Constraint, Vocabulary, VocabularySpec
from sapwood.grammar.compiler import Compiled
from sapwood.text.parsers import REASONING, TOOLS, Dialect, Parser, Said, gather
from sapwood.text.parsers.rules import OfferedTool, Rules
from tests.text.outputs import OUTPUTS

SPECIAL = re.compile(
    r"<\|[^|<>]+\|>|<\|[^|<>]+>|<[^|<>]+\|>|\[/?[A-Z_]+\]|<｜[^｜]+｜>|<(?:start|end)_function_call>|<escape>"
)
MARKERS = sorted({m for one in [*TOOLS.values(), *REASONING.values()] for m in one.markers} | {"<|constrain|>"})
NAMES = sorted({name for marker in MARKERS for name in SPECIAL.findall(marker)})
PLACES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Köln", "a b", "x\"y"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 20},
        "exact": {"type": "boolean"},
        "unit": {"$ref": "#/$defs/unit"},
        "codes": {"type": "array", "items": {"enum": ["p", "q"]}, "maxItems": 2},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["c", "f"]}},
}  # fmt: skip
OFFERS = [
    OfferedTool(name="weather", schema=PLACES, strict=True),
    OfferedTool(name="now", schema={"type": "object", "properties": {}, "additionalProperties": False}, strict=True),
]
SCHEMAS = {offer.name: offer.schema for offer in OFFERS}
END = 0


@cache
def vocabulary(special: bool) -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<eos>": END} | {letter: i for i, letter in enumerate(letters, 1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<eos>", *(NAMES if special else [])]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in names])
    return Vocabulary(VocabularySpec(str(tokenizer.to_str()), (END,), tokenizer.get_vocab_size()))


def rules_of(dialect: Dialect, special: bool) -> Rules:
    tokenizer = Tokenizer.from_str(_spec(special))
    added = tokenizer.get_added_tokens_decoder()
    return Rules(dialect, {token.content: id for id, token in added.items()}, [END])


@cache
def _spec(special: bool) -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<eos>": END} | {letter: i for i, letter in enumerate(letters, 1)}, []))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ["<eos>", *(NAMES if special else [])]])
    return str(tokenizer.to_str())


def begin(grammar: Grammar, special: bool) -> Constraint:
    compiled = Compiled(vocabulary(special), grammar, compact_json=True)
    return Constraint(compiled, position=0, stop_ids=(END,))


def allowed(constraint: Constraint) -> list[int]:
    bits = np.zeros((1, constraint.width), np.int32)
    if (matcher := constraint.begin(bits[0])) is not None:
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    constraint.finish(bits[0])
    ids = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
    return [int(id) for id in ids if id < len(constraint.compiled.vocabulary.pieces)]


def babble(grammar: Grammar, special: bool, seed: int, most: int = 3000) -> str | None:
    """Any text of the grammar, drawn token by token; None if it does not end in time."""
    constraint, rng, data = begin(grammar, special), random.Random(seed), b""
    pieces = constraint.compiled.vocabulary.pieces
    while not constraint.done:
        ids = allowed(constraint)
        more = [id for id in ids if id != END]
        token = END if END in ids and (not more or rng.random() < 0.3) else rng.choice(more)
        assert constraint.accept(token), constraint.error
        if token == END:
            break
        data += pieces[token]
        if len(data) > most:
            return None
    return data.decode("utf-8", "replace")


def read(dialect: Dialect, text: str, *, thinking: bool = False) -> tuple[Said, Parser]:
    parser = Parser(dialect, tools=SCHEMAS, thinking=thinking)
    return gather([*parser.push(text), *parser.finish()]), parser


def check(said: Said, parser: Parser) -> None:
    assert parser.num_malformed == 0
    for call in said.calls:
        jsonschema.Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))


def takes(grammar: Grammar, text: str, special: bool) -> bool:
    constraint = begin(grammar, special)
    for token in constraint.compiled.vocabulary.tokenizer.tokenize_str(text):
        if token not in allowed(constraint) or not constraint.accept(token):
            return False
    return constraint.done or END in allowed(constraint)


@pytest.mark.parametrize("special", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", TOOLS)
def test_required_calls(name: str, special: bool) -> None:
    dialect = Dialect(tools=TOOLS[name])
    rules = rules_of(dialect, special)
    counts = set()
    for seed, many in enumerate([True] * 6 + [False] * 3):
        grammar = Grammar.parts(rules.must_call(OFFERS, many=many))
        text = babble(grammar, special, seed)
        assert text is not None
        said, parser = read(dialect, text)
        assert said.calls and not said.text, text
        check(said, parser)
        assert many or len(said.calls) == 1
        counts.add(len(said.calls))
    assert max(counts) > 1


@pytest.mark.parametrize("name", TOOLS)
def test_text_that_may_call(name: str) -> None:
    dialect = Dialect(tools=TOOLS[name], reasoning=REASONING["harmony"] if name == "harmony" else None)
    rules = rules_of(dialect, True)
    free = Grammar.parts(rules.may_call(OFFERS, many=True))
    head = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert takes(free, head + "Hello, wörld.\n", True)
    call = babble(Grammar.parts(rules.must_call(OFFERS[:1], many=False)), True, 1)
    assert call is not None and takes(free, call, True)
    wrong = call.replace("city", "town")
    assert wrong != call and not takes(free, wrong, True)
    if TOOLS[name].sections[0].open and not head:
        assert takes(free, "I look.\n" + call, True) and not takes(free, "I look.\n" + wrong, True)


@pytest.mark.parametrize("name", REASONING)
@pytest.mark.parametrize("open", [True, False])
def test_behind_thoughts(name: str, open: bool) -> None:
    reasoning = REASONING[name]
    tools = TOOLS[name if name in TOOLS else "hermes"]
    dialect = Dialect(tools=tools, reasoning=reasoning)
    rules = rules_of(dialect, True)
    call = babble(Grammar.parts(rules.must_call(OFFERS, many=False)), True, 3)
    assert call is not None
    grammar = rules.behind_thoughts(rules.must_call(OFFERS, many=False), open=open)
    thoughts = ("" if open else reasoning.begin) + "Hm, {x}.\n" + reasoning.end + reasoning.resume
    assert takes(grammar, thoughts + call, True)
    assert not takes(grammar, thoughts + "x", True) and (open or takes(grammar, call, True))
    said, parser = read(dialect, thoughts + call, thinking=open)
    assert (said.thought, len(said.calls)) == ("Hm, {x}.", 1)
    check(said, parser)


@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice", "lark", "gbnf", "structural_tag"])
def test_an_answer_that_matches_or_a_call(kind: Any) -> None:
    texts = {
        "json_schema": ('{"type": "object"}', '{"a":1}'),
        "regex": ("a+", "aaa"),
        "choice": ('["yes", "no"]', "yes"),
        "lark": ("start: /b+/", "bb"),
        "gbnf": ('root ::= "c" [0-9]+', "c12"),
        "structural_tag": ('{"structures": [{"begin": "<f>", "end": "</f>"}], "triggers": ["<f"]}', "x <f>{}</f>"),
    }
    text, good = texts[kind]
    rules = rules_of(Dialect(tools=TOOLS["phi4"]), True)
    grammar = Grammar.parts(rules.text_or_call(Grammar(kind=kind, text=text), OFFERS, many=True))
    assert takes(grammar, good, True)
    assert takes(grammar, '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', True)
    assert not takes(grammar, '<|tool_call|>[{"name": "then", "arguments": {}}]<|/tool_call|>', True)


@pytest.mark.parametrize(
    "name",
    [
        "hermes",
        "deepseek v3",
        "deepseek v3.1",
        "deepseek v4",
        "glm",
        "glm4.7",
        "kimi",
        "functiongemma",
        "harmony",
        "phi4",
        "granite",
        "minimax",
        "seed",
    ],
)
def test_what_models_write_is_allowed(name: str) -> None:
    """A grammar that is far from a model's habits would make it worse."""
    output = OUTPUTS[name]
    loose = [
        OfferedTool(
            name=offer.name,
            schema={"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        )
        for offer in OFFERS
    ]
    rules = rules_of(Dialect(tools=TOOLS[output.tools]), True)
    section = TOOLS[output.tools].sections[0]
    written = output.written[output.written.index(section.open) :].removesuffix("<|call|>")
    compiled = Compiled(vocabulary(True), Grammar.parts(rules.must_call(loose, many=True)), compact_json=False)
    tokens = compiled.vocabulary.tokenizer.tokenize_str(written)
    assert compiled.matcher.deep_copy().try_consume_tokens(tokens) == len(tokens)
