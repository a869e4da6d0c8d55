"""Stop strings, against a twin that looks at the text one character at a time."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from sapwood.text.stops import Match, StopFinder, Strings

ABC = st.text("abc", min_size=1, max_size=5)


def twin(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(deadline=None)
@given(st.lists(ABC, max_size=12), st.lists(ABC, max_size=4), st.booleans())
def test_any_chunks_give_the_twins_text(chunks: list[str], stops: list[str], include: bool) -> None:
    wanted, stop = twin("".join(chunks), stops, include)
    finder = StopFinder([Strings(stops)], include=include)
    shown, seen = "", ""
    for chunk in chunks:
        shown += finder.push(chunk)
        seen += chunk
        assert wanted.startswith(shown)  # nothing is shown that has to be taken back
        if finder.found is None:  # and no more is held than may still become a stop string
            held = seen.removeprefix(shown)
            beginnings = [n for s in stops for n in range(len(s)) if seen.endswith(s[:n])]
            assert len(held) == max(beginnings, default=0)
    assert (shown + finder.finish(), finder.found) == (wanted, stop)


def test_nothing_comes_after_a_stop_string() -> None:
    finder = StopFinder([Strings(["END"])])
    assert [finder.push(text) for text in ("some E", "ND and", " more")] == ["some ", "", ""]
    assert finder.found == "END"
    assert finder.finish() == ""


def test_a_long_stop_string_costs_little() -> None:
    finder = StopFinder([Strings(["a" * 20_000 + "b"])])
    assert finder.push("a" * 30_000) == "a" * 10_000
    assert finder.push("c") == "a" * 20_000 + "c"


def named_twin(
    chars: list[tuple[str, bool]], plain: list[str], named: list[str], include: bool
) -> tuple[str, str | None]:
    """Characters one at a time, and whether each is shown; names are not."""
    shown = full = ""
    for char, own in chars:
        full += char
        shown += char if own else ""
        done = [(-len(stop), stop, own and stop in plain) for stop in plain + named]
        done = [one for one in done if (shown if one[1] in plain else full).endswith(one[1])]
        done = [one for one in done if one[2] or one[1] in named]
        if done:
            size, stop, _ = min(done)
            size = -size
            hidden = 0 if stop in plain else sum(not own for _, own in chars[len(full) - size : len(full)])
            return shown[: len(shown) - (size - hidden)] + (stop if include else ""), stop
    return shown, None


NAMES = ["a", "<x>", "<bc>"]


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.one_of(st.tuples(ABC, st.just("")), st.tuples(st.just(""), st.sampled_from(NAMES))), max_size=12),
    st.lists(ABC, max_size=2, unique=True),
    st.lists(st.lists(st.sampled_from([*NAMES, "b", "c", ">b"]), min_size=1, max_size=3).map("".join), max_size=3),
    st.booleans(),
)
def test_names_of_tokens_without_text(
    steps: list[tuple[str, str]], plain: list[str], named: list[str], include: bool
) -> None:
    named = [stop for stop in named if stop not in plain]
    chars = [(char, bool(text)) for text, name in steps for char in text or name]
    wanted, stop = named_twin(chars, plain, named, include)
    finder = StopFinder([Strings(plain)], [Strings(named)], include=include)
    shown = ""
    for text, name in steps:
        shown += finder.push(text, name)
        assert wanted.startswith(shown)
    assert (shown + finder.finish(), finder.found) == (wanted, stop)


def test_a_name_is_no_border_to_other_stops_and_one_to_its_own() -> None:
    def shown(stops: StopFinder, *steps: tuple[str, str]) -> tuple[str, str | None]:
        return "".join(stops.push(*step) for step in steps) + stops.finish(), stops.found

    end = ("", "<end>")
    assert shown(StopFinder([Strings(["ab"])], []), ("xa", ""), end, ("b", "")) == ("x", "ab")
    line = ["<end>\n"]
    assert shown(StopFinder([], [Strings(line)]), ("x", ""), end, ("y", ""), end, ("\nz", "")) == ("xy", "<end>\n")
    assert shown(StopFinder([], [Strings(line)], include=True), ("x", ""), end, ("\nz", "")) == ("x<end>\n", "<end>\n")
    assert shown(StopFinder([], [Strings(["x<end>"])]), ("xx", ""), end) == ("x", "x<end>")


def test_a_further_kind_of_stop_is_a_class() -> None:
    class Digit:
        held = 0

        def push(self, text: str) -> Match | None:
            begin = self.held
            self.held += len(text)
            ends = (begin + at for at, char in enumerate(text, 1) if char.isdigit())
            return next((Match(end, end - 1, text[end - 1 - begin]) for end in ends), None)

    finder = StopFinder([Strings(["END"]), Digit()])
    assert [finder.push(text) for text in ("some E", "N7D")] == ["some ", "EN"]
    assert finder.found == "7"


def test_many_names_cost_little() -> None:
    finder = StopFinder([Strings(["x"])], [Strings(["<end>\n"])])
    assert [finder.push("", "<end>") for _ in range(20_000)] == [""] * 20_000
    assert finder.push("\n") == "" and finder.found == "<end>\n"
