"""Stop strings, against a twin that looks at the text one character at a time."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from sapwood.text.stops import StopFinder

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
    finder = StopFinder(stops, include=include)
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
    finder = StopFinder(["END"])
    assert [finder.push(text) for text in ("some E", "ND and", " more")] == ["some ", "", ""]
    assert finder.found == "END"
    assert finder.finish() == ""


def test_a_long_stop_string_costs_little() -> None:
    finder = StopFinder(["a" * 20_000 + "b"])
    assert finder.push("a" * 30_000) == "a" * 10_000
    assert finder.push("c") == "a" * 20_000 + "c"
