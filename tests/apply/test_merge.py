"""Merging by lines: what is clear is exact, what is not is refused."""

from __future__ import annotations

import random

import pytest

from sapwood.apply import Edit, Unclear, by_anchors, check, merge
from sapwood.apply.lazy import is_mark

CODE = """\
import os
import re


class Box:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height

    def name(self):
        return "box"


def first():
    return 1


def second():
    value = 2
    return value


def main():
    box = Box(1, 2)
    print(box.area())
"""
MARK = "# ... existing code ...\n"


def clear(update: str, old: str, new: str, code: str = CODE) -> None:
    """The update makes this of one place of the code."""
    assert code.count(old) == 1
    assert by_anchors(Edit("", code, update)) == code.replace(old, new)


@pytest.mark.parametrize(
    ("update", "old", "new"),
    [
        (  # a line put in between two others
            f'{MARK}    def area(self):\n        """The area."""\n        return self.width * self.height\n{MARK}',
            "    def area(self):\n",
            '    def area(self):\n        """The area."""\n',
        ),
        (  # a line changed
            f'{MARK}    def name(self):\n        return "a box"\n\n\ndef first():\n{MARK}',
            '        return "box"\n',
            '        return "a box"\n',
        ),
        (  # lines gone
            f"{MARK}def second():\n    return value\n{MARK}",
            "    value = 2\n",
            "",
        ),
        (  # behind the end
            f"{MARK}\ndef more():\n    pass\n",
            "    print(box.area())\n",
            "    print(box.area())\n\ndef more():\n    pass\n",
        ),
        (  # before the beginning
            f"# A box.\n{MARK}",
            "import os\n",
            "# A box.\nimport os\n",
        ),
        (  # put in at a mark
            f"{MARK}        self.height = height\n        self.depth = 1\n\n    def area(self):\n{MARK}",
            "        self.height = height\n",
            "        self.height = height\n        self.depth = 1\n",
        ),
        (  # a snippet that is indented less than the file
            f'{MARK}def area(self):\n    """The area."""\n    return self.width * self.height\n{MARK}',
            "    def area(self):\n",
            '    def area(self):\n        """The area."""\n',
        ),
        (  # other white space within lines
            f'{MARK}    def  area(self):\n        """The area."""\n        return self.width  * self.height\n{MARK}',
            "    def area(self):\n",
            '    def area(self):\n        """The area."""\n',
        ),
        (  # lines that are indented anew
            f"{MARK}def main():\n    box = Box(1, 2)\n    if box:\n        print(box.area())\n",
            "    print(box.area())\n",
            "    if box:\n        print(box.area())\n",
        ),
        (  # blank lines beside marks
            f"{MARK}\n\ndef first():\n    return 10\n\n\ndef second():\n\n{MARK}",
            "    return 1\n",
            "    return 10\n",
        ),
    ],
    ids=range(10),
)
def test_what_is_clear(update: str, old: str, new: str) -> None:
    clear(update, old, new)
    windows = by_anchors(Edit("", CODE.replace("\n", "\r\n"), update))
    assert windows == CODE.replace(old, new).replace("\n", "\r\n"), "line ends stay as they are"


def test_several_places_at_once() -> None:
    update = f"import os\nimport re\nimport sys\n\n\nclass Box:\n    {MARK}    def name(self):\n        return 'b'\n\n\ndef first():\n    {MARK}"
    merged = by_anchors(Edit("", CODE, update))
    assert merged == CODE.replace("import re\n", "import re\nimport sys\n").replace('return "box"', "return 'b'")


def test_a_whole_file_is_itself() -> None:
    new = CODE.replace("Box(1, 2)", "Box(3, 4)").replace('\n\n    def name(self):\n        return "box"\n', "\n")
    assert by_anchors(Edit("", CODE, new)) == new


def test_a_snippet_without_marks_far_from_both_ends() -> None:
    head, tail = ("".join(f"{name}_{i} = {i}\n" for i in range(20)) for name in ("head", "tail"))
    code = head + CODE + tail
    clear("def second():\n    value = 3\n    return value\n", "    value = 2\n", "    value = 3\n", code)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ("", "no lines"),
        (f"{MARK}{MARK}", "no lines"),
        (f"{MARK}def third():\n    pass\n{MARK}", "no line that says where"),
        (f"{MARK}def second():\n    {MARK}def first():\n    {MARK}", "another order"),
        (f"{MARK}def second():\n    value = 3\n    {MARK}", "meant to replace"),
        ("def second():\n    value = 3\n    return value\n", "without a mark"),
        (f"import sys\n{MARK}", "look like"),
        (f"{MARK}import os\ndef main():\n{MARK}", "would go"),
        (f"{MARK}\tdef area(self):\n  x = 1\n\t\treturn self.width * self.height\n{MARK}", "indented"),
    ],
)
def test_what_is_not_clear_is_refused(update: str, why: str) -> None:
    with pytest.raises(Unclear, match=why):
        by_anchors(Edit("", CODE, update))


@pytest.mark.parametrize(
    "line",
    [
        "# ... existing code ...",
        "// ... existing code ...",
        "    // ... rest of the function ...",
        "/* ... existing code ... */",
        "<!-- ... existing code ... -->",
        "-- ... existing code ...",
        "# …",
        "# ...",
        "... existing code ...",
        "# ... (unchanged) ...",
        "{/* ... existing code ... */}",
        "// rest of the file unchanged",
        "# existing code",
    ],
)
def test_marks(line: str) -> None:
    assert is_mark(line)


@pytest.mark.parametrize(
    "line",
    [
        "...",
        "    ...",
        "x = ...",
        "print('... existing code ...')",
        "# see above",
        "# keep the existing code path fast",
        "// unchanged since the last time it ran",
        "f(...)",
        "# a... b",
        "",
        "// 1..2",
        "a, *rest = b",
    ],
)
def test_what_is_no_mark(line: str) -> None:
    assert not is_mark(line)


def _line(rng: random.Random) -> str:
    match rng.random():
        case chance if chance < 0.1:
            return ""
        case chance if chance < 0.2:
            return "}"
        case chance if chance < 0.25:
            return "    return x"
    return "    " * rng.randint(0, 2) + f"{rng.choice('abcdefgh')} = {rng.choice('uvwxyz')}({rng.randint(0, 99)})"


def _edited(rng: random.Random) -> tuple[str, str, str]:
    """A file, the same after some edits, and these as a snippet that shows lines around each."""
    old = [_line(rng) for _ in range(rng.randint(12, 60))]
    entries: list[tuple[str, int | None]] = []  # lines of the new file, with their places in the old one
    spots, at = set(rng.sample(range(len(old)), rng.randint(1, 3))), 0
    while at < len(old):
        if at in spots:
            kind = rng.choice("add change drop".split())
            if kind != "drop":
                entries += [(_line(rng), None) for _ in range(rng.randint(1, 4))]
            if kind == "add":
                entries.append((old[at], at))
                at += 1
            else:
                at += rng.randint(1, 3)
        else:
            entries.append((old[at], at))
            at += 1
    shown: set[int] = set()

    def show(place: int, step: int, left: int) -> None:
        while left and 0 <= place < len(entries):
            shown.add(place)
            left -= entries[place][1] is not None and any(map(str.isalnum, entries[place][0]))
            place += step

    before, around = -1, rng.randint(1, 3)
    for place, (_, was) in enumerate(entries):
        if was is None or was != before + 1:
            shown.add(place)
            show(place - 1, -1, around)
            show(place if was is not None else place + 1, 1, around)
        before = before if was is None else was
    if before != len(old) - 1:
        show(len(entries) - 1, -1, around)
    snippet: list[str] = []
    for place, (line, _) in enumerate(entries):
        if place in shown:
            snippet.append(line)
        elif not snippet or snippet[-1] != MARK.strip():
            snippet.append(MARK.strip())
    return "\n".join(old) + "\n", "\n".join(line for line, _ in entries) + "\n", "\n".join(snippet) + "\n"


CASES = """\
def test_one():
    room = Room(1)
    running = room.run("a")
    before = room.relief
    room.leave(running)
    assert room.relief > before


def test_two():
    room = Room(2)
    run(room)


def test_three():
    room = Room(3)
    run(room)
"""


def test_a_function_like_its_neighbours_is_put_between_them() -> None:
    """Lines of it stand elsewhere, once too; the run of lines on both of its sides stands in one place."""
    new = 'def test_more():\n    room = Room(4)\n    running = room.run("a")\n    room.leave(running)\n\n\n'
    update = f"{MARK}    room = Room(2)\n    run(room)\n\n\n{new}def test_three():\n    room = Room(3)\n{MARK}"
    assert by_anchors(Edit("", CASES, update)) == CASES.replace("def test_three", f"{new}def test_three")


@pytest.mark.parametrize(
    "update",
    [
        # Two lines of the new function stand in the first one; what is shown of that is less, and is not what has moved.
        f"{MARK}    room.leave(running)\n    assert room.relief > before\n\n\ndef test_more():\n    room = Room(1)\n"
        f'    running = room.run("a")\n    run(room)\n\n\ndef test_two():\n{MARK}',
        # As many lines have moved as have not.
        f'{MARK}    before = room.relief\n    room.leave(running)\n    room = Room(1)\n    running = room.run("a")\n{MARK}',
        # It says nothing but what is there; a function above it may be meant to go.
        f"{MARK}    run(room)\n\n\ndef test_three():\n    room = Room(3)\n    run(room)\n",
    ],
    ids=["moved at an end", "moved or not", "nothing new"],
)
def test_what_may_be_another_place_is_refused(update: str) -> None:
    with pytest.raises(Unclear):
        merge(CASES, update)


def test_random_edits_are_merged_exactly_or_refused() -> None:
    """Of lines that repeat themselves without end some cannot be told apart; none of a thousand edits of such is merged wrongly."""
    exact, wrong = 0, []
    for seed in range(1000):
        code, new, update = _edited(random.Random(seed))
        try:
            merged = by_anchors(Edit("", code, update))
        except Unclear:
            continue
        same = [line for line in merged.splitlines() if line] == [line for line in new.splitlines() if line]
        exact += same
        wrong += [] if same else [seed]
    assert exact > 750 and not wrong, (exact, wrong)


def test_nothing_is_lost_in_silence() -> None:
    update = f"{MARK}    def area(self):\n        return 7\n\n    def name(self):\n{MARK}"
    merged = merge(CODE, update)
    assert check(CODE, update, merged) == []
    for kind, wrong in (
        ("lost", merged.replace("    box = Box(1, 2)\n", "")),
        ("invented", merged.replace("def first():\n", "def first():\n    print(1)\n")),
        ("missing", CODE),
    ):
        problems = check(CODE, update, wrong)
        assert {problem.kind for problem in problems} == {kind}, problems
