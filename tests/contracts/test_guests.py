"""A feature is a file and a line in the composition root: guests made up here join without an edit anywhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import sapwood
from sapwood.base.plan import Part, Rows
from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Ready, Stake
from sapwood.runner.parts import Memory, before
from tests import models
from tests.engine.test_drafts import Said, drafted, same, say
from tests.engine.whole import prompts_that_share

SOURCES = Path(sapwood.__file__).parent


class Pause(Stake):
    """Every third request has to wait until it has been asked about some times."""

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}

    def concerns(self, request: Request) -> bool:
        return request.id % 3 == 0

    def ready(self, request: Request) -> Ready:
        self.asked[request.id] = self.asked.get(request.id, 0) + 1
        return NOW if self.asked[request.id] > 5 else LATER


class Hold(Stake):
    """Every second request may not go beyond a position, for some steps, when it gets there."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def concerns(self, request: Request) -> bool:
        return request.id % 2 == 0

    def clamp(self, request: Request, start: int, count: int) -> int:
        gate = request.prompt_len + 6
        if start + count <= gate or self.held.get(request.id, 0) >= 4:
            return count
        if start < gate:
            return gate - start
        self.held[request.id] = self.held.get(request.id, 0) + 1
        return 0

    def take(self, request: Request, start: int, end: int, number: int) -> int:
        gate = request.prompt_len + 6
        return gate if end <= gate else 2**31 - 1

    def take_steady(self, slots: object, ends: object, number: int) -> object:  # type: ignore[override]
        return slots * 0  # type: ignore[operator]


@dataclass(frozen=True)
class Note:
    """A part that is a message to the device's side."""

    text: str


class Notes(Stake):
    def parts(self, rows: Rows) -> Sequence[Part]:
        return (Note(f"{rows.num_rows} rows"),)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(model: Path) -> Said:
    """What requests say when no guest is there."""
    return say(model, requests())[0]


def requests() -> list[tuple[list[int], sapwood.SamplingParams]]:
    return [(prompt, sapwood.SamplingParams(max_tokens=20, temperature=0)) for prompt in prompts_that_share(10)]


Guests = Callable[[Slots], Sequence[Stake]]


def test_a_stake_that_lets_requests_wait_blocks_nobody_else(model: Path, alone: Said) -> None:
    pause = Pause()
    found, _ = say(model, requests(), stakes=lambda slots: (pause,))
    same(found, alone)
    assert set(pause.asked) == {0, 3, 6, 9} and min(pause.asked.values()) == 6


@pytest.mark.parametrize("depth", [0, 1])
def test_a_stake_that_holds_running_requests_back(model: Path, alone: Said, depth: int) -> None:
    hold = Hold()
    found, _ = say(model, requests(), stakes=lambda slots: (hold,), depth=depth)
    same(found, alone)
    assert hold.held and set(hold.held.values()) == {4}


def test_a_drafter(model: Path, alone: Said) -> None:
    found, _ = say(model, requests(), stakes=drafted(alone, 0.9))
    same(found, alone)


def test_a_part_that_records(model: Path, alone: Said) -> None:
    heard: list[str] = []

    @before.register
    def _(part: Note, memory: Memory) -> None:
        heard.append(part.text)

    found, counters = say(model, requests(), stakes=lambda slots: (Notes(),))
    same(found, alone)
    assert len(heard) == counters["steps"] and "8 rows" in heard


def test_all_of_them_together(model: Path, alone: Said) -> None:
    def guests(slots: Slots) -> Sequence[Stake]:
        return (Pause(), Hold(), *drafted(alone, 0.8)(slots))

    found, _ = say(model, requests(), stakes=guests, depth=1, max_total_tokens=208, page_size=16)
    same(found, alone)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("engine/loop.py", "constraint|grammar|mask|cache|draft|adapter"),
        ("scheduler/planner.py", r"\bkv\b|cache\.|constraint|grammar|mask|adapter|image"),
        ("scheduler/commit.py", r"\bkv\b|cache\.|constraint|grammar|mask|adapter|image"),
        ("scheduler/roster.py", r"\bkv\b|cache\.|constraint|grammar|mask|adapter|image"),
    ],
)
def test_those_who_decide_know_no_guest_by_name(file: str, words: str) -> None:
    code = re.sub(r'"""(.|\n)*?"""|#.*', "", (SOURCES / file).read_text())
    code = code.replace("cached_tokens", "").replace("repaired_pages", "")
    assert not re.findall(words, code)
