"""What outputs say, before any API words it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar
from sapwood.base.sampling import SamplingParams
from sapwood.config import Config
from sapwood.grammar.spellings import Asked
from sapwood.server import create_app
from sapwood.server.calling import Toolbox, grammar_of
from sapwood.server.conversation import Ask, Reading, begin
from sapwood.server.front import Front, Talk
from sapwood.server.generation import Choice, News, Prompt, complete, generate
from sapwood.server.thinking import Budget
from sapwood.text.parsers import Event, gather
from sapwood.text.parsers.rules import OfferedTool
from tests.server.fakes import CHATML, MODEL, FakeEngine, make_text

pytestmark = pytest.mark.anyio

TEMPLATE = CHATML + "{# <think></think> {{ tools }} <tool_call>\n #}"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
TOOLBOX = Toolbox(
    told=[], offers=(OfferedTool(name="now", schema={"type": "object"}),), places=("tools[0]",), must=False, many=True
)
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    text = make_text(tmp_path_factory.mktemp("talk"), "{% if tools %}{{ tools }}<tool_call>\n{% endif %}" + TEMPLATE)
    front: Front = create_app(FakeEngine(text), text, Config(), MODEL).state.front
    return front


def read(front: Front, written: str, size: int, *, finish: str = "stop", stop: str | None = None) -> Reading:
    choice = Choice(0, Prompt([5], "prompt"), SamplingParams(), tokens=front.text.encode(written))
    reading = Reading(front, {"now": {}}, most_calls=None, thoughts="possible")
    events: list[Event] = []
    for at in range(0, len(written), size):
        assert not reading.to_call and choice.num_thought_tokens is None
        if at + size >= len(written):
            choice.finish, choice.stop = finish, stop
        events += reading.events(choice, written[at : at + size])
    said = gather(events)
    assert (said.text, said.thought) == ("So.", "Hm.")
    assert choice.num_thought_tokens == len(front.text.encode("<think>Hm.</think>"))
    return reading


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_to_be_run_only_where_the_output_is_whole(front: Front, size: int) -> None:
    written = f"<think>Hm.</think>So.{CALL}"
    assert read(front, written, size).to_call
    assert not read(front, written, size, finish="length").to_call
    assert read(front, written, size, stop="</tool_call>").to_call
    assert not read(front, written.removesuffix("}}\n</tool_call>"), size, stop="}").to_call
    assert not read(front, "<think>Hm.</think>So.", size).to_call


ASKS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"toolbox": TOOLBOX}, True),
    ({"toolbox": TOOLBOX, "split": False}, True),
]


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(("more", "calls"), ASKS)
async def test_a_turn_without_any_dialect(front: Front, more: dict[str, Any], calls: bool, chunk: int) -> None:
    """What a new API needs: an Ask of its body, then events of the news, or all that was said."""
    engine = front.engine
    assert isinstance(engine, FakeEngine)
    written = f"<think>Hm.</think>So.{CALL}"
    engine.answer, engine.chunk = lambda tokens, params: [*front.text.encode(written), front.text.eos_ids[0]], chunk
    fields: dict[str, Any] = {"toolbox": None, "budget": Budget(9, "think"), "format": None, "salt": "s"}
    ask = Ask(talk=Talk(messages=HELLO), params=SamplingParams(n=2), **fields | more)

    turn = await begin(front, ask)
    await complete(front, turn.choices)
    for choice in turn.choices:
        said = turn.said(choice)
        split = more.get("split", True)
        assert said.thought == ("Hm." if split else "")
        assert said.text == ("" if split else "<think>Hm.</think>") + "So." + ("" if calls else CALL)
        assert [call.name for call in said.calls] == ["now"] * calls and turn.to_call(choice) == calls
        assert choice.num_thought_tokens and turn.finding(choice) is None
    asked = engine.asked[-1]
    assert asked.salt == "s" and asked.params.thinking is not None and asked.params.thinking.budget == 9

    grown, events = await begin(front, ask), list[Event]()

    def note(news: list[News]) -> None:
        events.extend(event for one in news if one.choice.index == 1 for event in grown.events(one))

    await generate(front, grown.choices, note)
    assert gather(events) == said


@pytest.mark.parametrize("param", ["think", "format"])
async def test_errors_name_the_fields_of_the_asker(front: Front, param: str) -> None:
    fields: dict[str, Any] = {"toolbox": None, "budget": None, "format": None}
    if param == "format":
        fields["format"] = Asked(Grammar.regex("(a"), "format")
    else:
        fields["toolbox"] = replace(
            TOOLBOX, places=("think",), must=True, offers=(OfferedTool(name="now", schema={"type": 5}),)
        )
    with pytest.raises(RequestError) as raised:
        await begin(front, Ask(talk=Talk(messages=HELLO), params=SamplingParams(), **fields))
    assert raised.value.param == param


async def test_each_grammar_is_tried_once(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    check = front._grammars.check

    async def counted(grammar: Grammar) -> list[str]:
        tried.append(grammar.text)
        return await check(grammar)

    monkeypatch.setattr(front._grammars, "check", counted)
    unique = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    asked = Asked(Grammar.json(unique), "format")
    params, end_check = await front.restrict(SamplingParams(), asked)
    assert params.grammar is asked.grammar and end_check is not None and tried == [asked.grammar.text]
    tools = replace(
        TOOLBOX,
        offers=(OfferedTool(name="f", schema=unique | {"type": "object"}), OfferedTool(name="g", schema={})),
        places=("a", "b"),
    )
    for toolbox, thoughts, count in [(None, "none", 1), (None, "open", 2), (tools, "none", 4)]:
        tried.clear()
        grammar, end_checks = await grammar_of(front, toolbox, asked, thoughts)
        assert grammar is not None and end_checks is not None and end_checks.text is not None
        assert len(tried) == len(set(tried)) == count
    await front.close()


LONG = "the cat " * 1000


@pytest.mark.parametrize(
    ("message", "template", "beside"),
    [
        ({"content": "x" * 1000}, {"mood": "glad"}, False),
        ({"content": LONG}, {}, True),
        ({"content": [{"type": "text", "text": LONG}]}, {}, True),
        ({"content": "x", "reasoning_content": LONG}, {}, True),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": [{"b": LONG}]}}}]}, {}, True),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {LONG: 1}}}]}, {}, True),
        ({"content": "x"}, {"moods": [*range(5000)]}, True),
    ],
)
async def test_all_that_is_long_is_rendered_beside_the_loop(
    front: Front, monkeypatch: pytest.MonkeyPatch, message: dict[str, Any], template: dict[str, Any], beside: bool
) -> None:
    rendering: list[threading.Thread] = []
    render = front.text.render

    def noted(*args: Any, **named: Any) -> str:
        rendering.append(threading.current_thread())
        return render(*args, **named)

    monkeypatch.setattr(front.text, "render", noted)
    monkeypatch.setattr(front.text, "encode", lambda *args, **named: [5])
    await front.render(Talk(messages=[*HELLO, {"role": "assistant"} | message], template=template))
    assert (rendering != [threading.main_thread()]) == beside
