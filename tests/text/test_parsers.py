"""Outputs of all families are read as what they mean, however they are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.base.errors import ConfigError
from sapwood.text.parsers import REASONING, Dialect, Event, Parser, Reasoning, choose, gather
from sapwood.text.parsers import TOOLS as FORMATS
from tests.text.outputs import OUTPUTS, TOOLS, Output

PIECES = sorted({marker for one in [*FORMATS.values(), *REASONING.values()] for marker in one.markers})


def parser_of(output: Output, **more: object) -> Parser:
    name, _, opened = output.reasoning.partition(" ")
    dialect = choose("", tools=output.tools, reasoning=name)
    return Parser(dialect, tools=TOOLS, thinking=bool(opened), **more)  # type: ignore[arg-type]


def read(parser: Parser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_it_means(name: str) -> None:
    output = OUTPUTS[name]
    parser = parser_of(output)
    text, thought, calls = gather(read(parser, [output.written]))
    assert [(call.name, json.loads(call.arguments)) for call in calls] == output.calls
    assert (text, thought) == (output.text, output.thought)
    assert (parser.num_calls, parser.num_malformed) == (len(calls), output.malformed)


def test_the_way_out_of_thoughts_holds_their_end() -> None:
    for leave, free, bound in ("", "</t>", "</t>"), ("so.</t>\n\n", "so.</t>\n\n", "so.</t>"):
        format = Reasoning(begin="<t>", end="</t>", leave=leave)
        assert (format.way_out(bound=False), format.way_out(bound=True)) == (free, bound)
    with pytest.raises(ValueError, match="leave must contain end"):
        Reasoning(begin="<t>", end="</t>", leave="so.")


@pytest.mark.parametrize("name", OUTPUTS)
def test_character_by_character(name: str) -> None:
    output = OUTPUTS[name]
    whole = gather(read(parser_of(output), [output.written]))
    parser = parser_of(output)
    events = read(parser, list(output.written))
    assert gather(events) == whole
    assert parser.num_malformed == output.malformed
    for number, (called, _) in enumerate(output.calls):
        mine = [event for event in events if event.call == number]
        assert mine[0] == ("call", called, number) and all(event.kind == "arguments" for event in mine[1:])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(OUTPUTS)), st.lists(st.integers(0, 10_000), max_size=12), st.integers(0, 10_000))
def test_any_cut_of_any_beginning(name: str, places: list[int], end: int) -> None:
    """An output may end anywhere (a limit, a stop string); even then it does not matter how it came."""
    output = OUTPUTS[name]
    written = output.written[: end % (len(output.written) + 1)] or output.written
    assert gather(read(parser_of(output), cut(written, places))) == gather(read(parser_of(output), [written]))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(["none", *REASONING]),
    st.booleans(),
    st.lists(
        st.sampled_from([*PIECES, *"{}[]()\"'\\,:;= \nx1", "weather", '"name"', '"arguments"', "true"]), max_size=25
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_cut_of_anything(tools: str, reasoning: str, thinking: bool, parts: list[str], places: list[int]) -> None:
    dialect, text = choose("", tools=tools, reasoning=reasoning), "".join(parts)
    whole, other = (Parser(dialect, tools=TOOLS, thinking=thinking) for _ in range(2))
    assert gather(read(other, cut(text, places))) == gather(read(whole, [text]))
    assert (other.num_calls, other.num_malformed) == (whole.num_calls, whole.num_malformed)


def test_arguments_stream() -> None:
    parser = parser_of(OUTPUTS["hermes"])
    parser.push('<tool_call>\n{"name": "weather", "argu')
    assert parser.push('ments": {"city": "Kö') == [("arguments", '{"city": "Kö', 0)]
    assert parser.push("ln") == [("arguments", "ln", 0)]


def test_text_waits_only_for_what_may_be_a_marker() -> None:
    parser = parser_of(OUTPUTS["hermes"])
    assert parser.push("a <") == [("text", "a", -1)]
    assert parser.push("b") == [("text", " <b", -1)]


def test_without_tools_calls_are_text() -> None:
    parser = Parser(choose("", tools="hermes"))
    written = OUTPUTS["hermes two"].written
    assert gather(read(parser, [written])) == (written, "", [])


def test_no_more_calls_than_asked_for() -> None:
    parser = parser_of(OUTPUTS["hermes two"], most_calls=1)
    assert len(gather(read(parser, [OUTPUTS["hermes two"].written])).calls) == 1


def test_a_call_that_breaks_off_is_told() -> None:
    parser = parser_of(OUTPUTS["hermes"])
    said = gather(read(parser, ['<tool_call>{"name": "now", "arguments": {"a": ']))
    assert said.calls == [("now", '{"a": ')] and parser.num_malformed == 1 and parser.cut
    parser = parser_of(OUTPUTS["hermes"], most_calls=1)
    read(parser, ['<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now", "arguments": {"a": '])
    assert not parser.cut


TEMPLATES = {
    "<tool_call> {\"name\": ..., <think></think>": ("hermes", "think"),
    "<tool_call>\n<function=example": ("qwen3-coder", None),
    "<tool_call>{function-name}\n<arg_key>": ("glm", None),
    "[TOOL_CALLS] [": ("mistral-list", None),
    "[TOOL_CALLS] [ARGS] [THINK]": ("mistral", "mistral"),
    '<|eot_id|> {"name": function name, "parameters": dictionary <|python_tag|>': ("llama3", None),
    "<|python_start|> [func_name1(params_name1=": ("llama4", None),
    '<|python_start|> {"name": function name, "parameters": dictionary <|eot|>': ("llama4-json", None),
    "<｜tool▁calls▁begin｜> ```json </think>": ("deepseek-v3", "think"),
    "<｜tool▁calls▁begin｜> <｜tool▁sep｜>": ("deepseek-v3.1", None),
    "<|start|>assistant<|channel|>analysis": ("harmony", "harmony"),
    "<|tool_calls_section_begin|>": ("kimi-k2", None),
    "<｜DSML｜function_calls> message.tool_calls": ("deepseek-v3.2", None),
    "<｜DSML｜tool_calls> </think>": ("deepseek-v4", "think"),
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>": ("glm4.7", None),
    "<minimax:tool_call> <think></think>": ("minimax-m2", "think"),
    "<seed:tool_call>\n<function=f> <seed:think>": ("seed", "seed"),
    "<|im_start|> <|tool|>{{ tools }}<|/tool|> <|tool_call|>": ("phi4", None),
    "formatted as functools[{": ("phi4-functools", None),
    "<|tool_call|> <|tool_response|>": ("granite", None),
    "<|im_start|> List of tools: <|tool_list_start|>[": ("lfm2", None),
    "<|im_start|> <|tool_call_start|>[": ("lfm2.5", None),
    "<|tool_call> <|channel>": ("gemma4", "gemma4"),
    "<start_function_call>": ("functiongemma", None),
    "": ("generic", None),
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_chosen_by_the_template(template: str) -> None:
    tools, reasoning = TEMPLATES[template]
    assert choose(template) == Dialect(tools=FORMATS[tools], reasoning=reasoning and REASONING[reasoning])


def test_chosen_by_the_user() -> None:
    assert choose("<tool_call>", tools="llama3_json", reasoning="deepseek_r1") == Dialect(
        tools=FORMATS["llama3"], reasoning=REASONING["think"]
    )
    assert choose("<tool_call></think>", tools="none", reasoning="none") == Dialect()
    with pytest.raises(ConfigError, match="--tool-parser nonsense: there are auto, none, harmony"):
        choose("", tools="nonsense")
