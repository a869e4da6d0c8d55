"""Models that are restricted: what they say validates, whatever else is asked for and whoever runs beside it.

A random model over bytes says anything that it may say; a small real one shows that it is not only about bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sapwood import LLM, Grammar, RequestError, SamplingParams
from sapwood.outputs import Generation
from tests.grammar.schemas import SCHEMAS

jsonschema = pytest.importorskip("jsonschema")

# scripts/structured_check.py has all of them on the real model, several times each.
REAL = ["flat", "pattern", "unicode keys"]
# A random model goes on for ever where it may.
ENDLESS = {"number range", "time", "date-time", "recursive", "tree", "$ref", "scores", "unicode keys", "allOf"}
COMMA = 11  # "," among the bytes that begin with "!"
HELLO = [{"role": "user", "content": "Give me an example."}]


def make(model: Path, **options: Any) -> LLM:
    options = {
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_total_tokens": 16384,
        "max_num_batched_tokens": 128,
    } | options
    return LLM(str(model), constrained_json_disable_any_whitespace=True, **options)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return make(tiny_model)


def restricted(grammar: Grammar | dict[str, Any], **more: Any) -> SamplingParams:
    grammar = grammar if isinstance(grammar, Grammar) else Grammar.json(grammar)
    return SamplingParams(**({"max_tokens": 700, "grammar": grammar, "seed": 1} | more))


def check(generation: Generation, schema: dict[str, Any]) -> None:
    assert generation.finish_reason == "stop", generation.text
    jsonschema.Draft202012Validator(schema).validate(json.loads(generation.text))


def test_a_real_model(smollm2: Path) -> None:
    llm = LLM(str(smollm2), max_model_len=512, max_num_seqs=8, max_total_tokens=4096)
    params = [restricted(SCHEMAS[name], seed=number, max_tokens=120) for number, name in enumerate(REAL)]
    for name, generation in zip(REAL, llm.chat([HELLO] * len(REAL), params), strict=True):
        check(generation, SCHEMAS[name])


def test_schemas_beside_free_requests(llm: LLM) -> None:
    names = [name for name in SCHEMAS if name not in ENDLESS]
    assert len(names) >= 38
    params = [restricted(SCHEMAS[name], seed=number) for number, name in enumerate(names)]
    free = SamplingParams(max_tokens=60, temperature=0)
    alone = llm.chat(HELLO, free)[0].token_ids
    *found, beside = llm.chat([HELLO] * (len(names) + 1), [*params, free])
    for name, generation in zip(names, found, strict=True):
        check(generation, SCHEMAS[name])
    assert beside.token_ids == alone
    again = llm.chat(HELLO, params[0])[0]
    assert again.token_ids == found[0].token_ids, "the same seed, alone"


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"jump_forward": False},
        {"depth": 2, "max_num_batched_tokens": 16},
        {"max_total_tokens": 448, "max_model_len": 448},
    ],
    ids=str,
)
def test_neither_overlap_nor_forced_tokens_nor_chunks_nor_preemption_change_a_token(
    tiny_model: Path, llm: LLM, options: dict[str, Any]
) -> None:
    names = ["flat", "nested", "function call", "annotated", "long key", "nested deeply", *["extraction"] * 6]
    params = [restricted(SCHEMAS[name], seed=seed, max_tokens=330) for seed, name in enumerate(names)]
    want = llm.chat([HELLO] * len(names), params)
    other = make(tiny_model, **options)
    found = other.chat([HELLO] * len(names), params)
    assert [one.token_ids for one in found] == [one.token_ids for one in want]
    counters = other._engine.stats().counters
    assert (counters["preemptions"] > 0) == ("max_total_tokens" in options)
    assert (counters["forced_tokens"] > 0) == options.get("jump_forward", True)


def test_prefix_hits_and_choices_that_share_a_prompt_change_nothing(tiny_model: Path) -> None:
    llm, params = make(tiny_model), restricted(SCHEMAS["nested"], seed=4)
    first, again = llm.chat(HELLO, params)[0], llm.chat(HELLO, params)[0]
    assert first.cached_tokens == 0 and again.cached_tokens > 0 and again.token_ids == first.token_ids
    check(again, SCHEMAS["nested"])
    several = llm.chat(HELLO, restricted(SCHEMAS["nested"], seed=4, n=3))[0].outputs
    assert several[0].token_ids == first.token_ids and len({one.text for one in several}) == 3


def test_with_everything_else(llm: LLM) -> None:
    params = restricted(
        Grammar.regex("[a-z]{4,30}( [a-z]{1,9}){2,40}"), n=3, logprobs=2, repetition_penalty=1.2, min_tokens=12,
        logit_bias={5: 2.0}, stop=("xyzzy",),
    )  # fmt: skip
    generation = llm.generate("Once upon a time", params)[0]
    assert len({output.text for output in generation.outputs}) == 3
    for output in generation.outputs:
        assert re.fullmatch("[a-z]{4,30}( [a-z]{1,9}){2,40}", output.text) and output.finish_reason == "stop"
        assert len(output.token_ids) >= 12 and len(output.logprobs) == len(output.token_ids)
        assert all(one.logprob <= 0 and len(one.top_ids) == 2 for one in output.logprobs)
        assert any(one.token not in one.top_ids for one in output.logprobs), "the model's own wishes, not the mask's"


def test_logprobs_do_not_change_what_is_said(llm: LLM) -> None:
    """With them forced tokens are drawn one by one, and have logprobs like all others."""
    plain, told = llm.chat([HELLO] * 2, [restricted(SCHEMAS["long key"], logprobs=one) for one in (None, 0)])
    assert plain.token_ids == told.token_ids == [one.token for one in told.outputs[0].logprobs]


LONG = "".join(f"{number} apples, " for number in range(30_000))
STRETCHES = {
    "50 KB": (Grammar.choice([LONG[:50_000]]), LONG),
    "400 KB": (Grammar.choice([LONG[:400_000]]), LONG),
    "endless": (Grammar.rules('root ::= "ab" root'), "ab" * 400),
    "free, then endless": (Grammar.rules('root ::= [x-z] rest\nrest ::= "ab" rest'), None),
}


@pytest.mark.parametrize("name", STRETCHES)
@pytest.mark.parametrize("jump", [True, False])
def test_prescribed_text_goes_on_until_the_output_is_full(tiny_model: Path, llm: LLM, name: str, jump: bool) -> None:
    """Jumped over or not, several at once, with logprobs, up to a stop string."""
    grammar, text = STRETCHES[name]
    asked = [{"n": 2}, {"logprobs": 0}, {"stop": ("7 apples", "bab")}, {}]
    params = [restricted(grammar, max_tokens=200, **more) for more in asked]
    free = SamplingParams(max_tokens=40, temperature=0)
    one = llm if jump else make(tiny_model, jump_forward=False)
    *found, beside = one.chat([HELLO] * 5, [*params, free])
    assert beside.token_ids == llm.chat(HELLO, free)[0].token_ids
    for generation in found:
        for output in generation.outputs:
            want = text or output.text[:1] + "ab" * 400
            if output.finish_reason == "length":
                assert output.text == want[:200] and len(output.token_ids) == 200
            else:
                assert output.stop and want.startswith(output.text + output.stop)
    assert [one.finish_reason for one in found] == ["length", "length", "stop", "length"]
    assert len(found[1].outputs[0].logprobs) == 200


def test_stop_strings_and_length_end_it_too(llm: LLM) -> None:
    schema = SCHEMAS["flat"]
    stopped, cut = llm.chat([HELLO] * 2, [restricted(schema, stop=('"age"',)), restricted(schema, max_tokens=3)])
    assert stopped.outputs[0].stop == '"age"' and '"name"' in stopped.text and '"age"' not in stopped.text
    assert cut.finish_reason == "length" and len(cut.token_ids) == 3


def test_free_text_before_the_grammar(llm: LLM) -> None:
    grammar = Grammar(kind="choice", text='[" certainly not."]', after=",")
    params = restricted(grammar, logit_bias={COMMA: 4.0}, max_tokens=300)
    generation = llm.generate("Hello, my name is", params)[0]
    before, comma, behind = generation.text.partition(",")
    assert before and comma == "," and behind == " certainly not." and generation.finish_reason == "stop"


def test_bad_grammars_are_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="unclosed") as caught:
        llm.generate(["a", "b"], [SamplingParams(), restricted(Grammar.regex("(a"))])
    assert caught.value.param == "grammar" and llm._engine.idle


def test_the_metrics_tell(llm: LLM) -> None:
    stats = llm._engine.stats()
    assert stats.counters["constrained"] > 0 and stats.counters["masks"] > 0 and stats.counters["forced_tokens"] > 0
    assert stats.seconds["mask_seconds"] > 0 and stats.seconds["compile_seconds"] > 0


def test_what_no_grammar_follows_is_checked_at_the_end(llm: LLM) -> None:
    unique = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    wrong = unique | {"uniqueItems": True, "prefixItems": [{"const": True}] * 2}
    found = llm.chat([HELLO] * 2, [restricted(unique), restricted(wrong)])
    assert found[0].outputs[0].schema_check is None
    finding = found[1].outputs[0].schema_check
    assert finding is not None and not finding.valid and finding.errors == ["$: has an item twice"]
