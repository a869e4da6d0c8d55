"""What outputs say, before any API words it."""

from __future__ import annotations

import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.config import Config
from sapwood.server import create_app
from sapwood.server.conversation import Reading
from sapwood.server.front import Front
from sapwood.server.generation import Choice, Prompt
from sapwood.text.parsers import Event, gather
from tests.server.fakes import CHATML, MODEL, FakeEngine, make_text

TEMPLATE = CHATML + "{# <think></think> {{ tools }} <tool_call>\n #}"
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
