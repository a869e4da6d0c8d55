"""What agents change in their system prompts, and where it goes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sapwood.config import Config
from sapwood.config.flags import options
from sapwood.config.options import ServerConfig
from sapwood.server.prefixes import RULES, Stable
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.anyio

ENV = "<env>\nWorking directory: /home/me/{0}\nIs directory a git repo: Yes\nPlatform: linux\nToday's date: 2026-11-{0}\n</env>"
GIT = "gitStatus: This is the git status at the start of the conversation.\n\nCurrent branch: main\n\nStatus:\nM {0}.py"
USER = {"role": "user", "content": "Mend it."}
ANSWER = {"role": "assistant", "content": "Done."}

SYSTEMS: dict[str, str] = {
    "claude-code": "x-anthropic-billing-header: cc_version=2.1.{0}; cch=a{0};\nYou are a coder.\n\n"
    "Here is useful information about the environment you are running in:\n" + ENV + "\n\nBe brief.\n"
    "Token usage: {0}/200000; some remaining\nNever guess.\n\n" + GIT,
    "opencode": "You are a coder.\n" + ENV + "\nBe brief.",
    "cline": "You are Cline.\n\n====\n\nSYSTEM INFORMATION\n\nOperating System: Linux\nDefault Shell: /bin/bash\n"
    "Home Directory: /home/me\nCurrent Working Directory: /home/me/{0}\n\n====\n\nOBJECTIVE\n\nYou mend things.",
    "dates": "Today's date is November {0}, 2026.\nYou are kind.\nCurrent time: 10:{0}\nBe brief.",
}


def shared(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def written(messages: list[dict[str, Any]]) -> str:
    return "".join(f"[{one['role']}]{one['content']}" for one in messages)


def test_options_and_rules_are_about_the_same_clients() -> None:
    (option,) = (option for option in options() if option.field == "stable_prefix")
    assert option.choices == (*RULES,)
    assert SYSTEMS.keys() == RULES.keys()
    assert all(rule.about for rules in RULES.values() for rule in rules)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("parts", [False, True])
def test_the_system_prompt_is_the_same_whatever_day_it_is(name: str, parts: bool) -> None:
    stable, texts = Stable([name]), []
    for number in (11, 12):
        system: Any = SYSTEMS[name].format(number)
        content = [{"type": "text", "text": system}] if parts else system
        given = [{"role": "system", "content": content}, USER, ANSWER, USER]
        before = written(given)
        messages = stable(given)
        assert written(given) == before, "what was given stays as it was"
        head = messages[0]["content"]
        texts.append(head[0]["text"] if parts else head)
        assert [one["role"] for one in messages] == ["system", "user", "assistant", "user"]
    assert texts[0] == texts[1] and len(texts[0]) > 20
    assert "11" not in texts[0]


def test_nothing_that_a_model_should_know_is_lost() -> None:
    messages = Stable(["claude-code"])(
        [{"role": "system", "content": SYSTEMS["claude-code"].format(11)}, USER, ANSWER, USER]
    )
    text = written(messages)
    for line in SYSTEMS["claude-code"].format(11).splitlines():
        assert (line in text) == (not line.startswith("x-anthropic")), line
    assert messages[0]["content"].startswith("You are a coder.")
    assert messages[1]["content"].startswith("Here is useful information") and messages[1]["content"].endswith(
        "Mend it."
    )
    assert messages[2] == ANSWER
    assert messages[3]["content"] == "Mend it.\n\nToken usage: 11/200000; some remaining"


def test_a_system_message_that_says_nothing_else_goes() -> None:
    given = [
        {"role": "system", "content": "x-anthropic-billing-header: a"},
        {"role": "system", "content": "Be brief."},
        USER,
    ]
    assert Stable(["claude-code"])(given) == given[1:]
    blocks = [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "Be brief."}]
    assert Stable(["claude-code"])([{"role": "system", "content": blocks}, USER])[0]["content"] == blocks[1:]


@pytest.mark.parametrize(
    "given",
    [
        [USER],
        [{"role": "system", "content": "Today's date is Monday."}],
        [{"role": "system", "content": "Be brief."}, USER, {"role": "system", "content": "Today's date is Monday."}],
        [{"role": "system", "content": "Say what Today's date is: now."}, USER],
        [{"role": "system", "content": "Today is a day on which " + "you do your very best " * 9}, USER],
        [{"role": "system", "content": None}, USER],
        [],
    ],
)
def test_all_else_stays_as_it_is(given: list[dict[str, Any]]) -> None:
    assert Stable([*RULES])(given) is given


def test_long_texts_take_no_long_time() -> None:
    for text in (
        "<env>\n" * 100_000,
        "SYSTEM INFORMATION\n\n" * 50_000,
        "Today's date is x\n" * 50_000,
        "\n" * 500_000,
    ):
        Stable([*RULES])([{"role": "system", "content": text}, USER])


@pytest.mark.parametrize("config", [Config(server=ServerConfig(stable_prefix="dates, claude-code"))])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_every_dialect_has_it(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel, path: str) -> None:
    for number in (11, 12):
        system = SYSTEMS["dates"].format(number)
        body: dict[str, Any] = {"model": "tiny", "max_tokens": 1, "messages": [USER]}
        match path:
            case "/v1/messages":
                body |= {"system": system}
            case "/v1/responses":
                body = {"model": "tiny", "instructions": system, "input": "Mend it."}
            case _:
                body["messages"] = [{"role": "system", "content": system}, USER]
        reply = await http.post(path, json=body)
        assert reply.status_code == 200, reply.text
    prompts = [text.decode(asked.tokens, skip_special=False) for asked in engine.asked]
    assert shared(*prompts) > prompts[0].index("user") > prompts[0].index("Be brief.")
    assert "Today's date is November 11, 2026." in prompts[0] and "Current time: 10:11" in prompts[0]


async def test_it_is_off_unless_asked_for(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    system = SYSTEMS["claude-code"].format(11)
    await http.post("/v1/chat/completions", json={"messages": [{"role": "system", "content": system}, USER]})
    assert system in text.decode(engine.asked[0].tokens, skip_special=False)
