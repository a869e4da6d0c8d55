"""Outputs from news: in any pieces the same text, tokens and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta, FinishReason
from sapwood.text import Assembler, TextModel

Whole = tuple[str, list[int], list[float], str | None, str | int | None]


def whole(
    assembler: Assembler, steps: Sequence[list[int]], *, finish: FinishReason | None = "length", stop: int | None = None
) -> Whole:
    """All of an output. With `finish` the last step ends it; each token has the logprob that is its place, negative."""
    text, tokens, logprobs, place = "", [], [], 0
    for number, step in enumerate(steps, 1):
        scored = [TokenLogprobs(token, -float(place + at), 1, [], []) for at, token in enumerate(step)]
        place += len(step)
        last = finish is not None and number == len(steps)
        piece = assembler.take(
            Delta(1, step, finish if last else None, stop=stop if last else None, logprobs=scored or None)
        )
        text += piece.text
        tokens += piece.tokens
        logprobs += [one.logprob for one in piece.logprobs]
        if assembler.finish is not None:
            break
    return text, tokens, logprobs, assembler.finish, assembler.stop


def test_in_any_steps_the_same(text: TextModel) -> None:
    steps = st.lists(st.lists(st.integers(0, text.vocab_size - 1), max_size=3), max_size=10)
    stops = st.lists(
        st.sampled_from(["a", "th", "the", "<|im", " c", "\ufffd", "e c", "<|im_end|>", "<|im_end|> c", "e<|im_end|>"]),
        max_size=3,
    )

    @hypothesis_settings(max_examples=300, deadline=None)
    @given(steps, stops, st.booleans(), st.booleans(), st.integers(0, 6))
    def check(steps: list[list[int]], stops: list[str], include: bool, skip: bool, min_tokens: int) -> None:
        params = SamplingParams(
            stop=tuple(stops), include_stop=include, skip_special_tokens=skip, min_tokens=min_tokens
        )
        tokens = [token for step in steps for token in step]
        found = whole(text.assembler(params), [*steps, []])
        assert found == whole(text.assembler(params), [tokens])
        assert found == whole(text.assembler(params), [[token] for token in tokens] + [[]])
        assert found[1] == tokens[: len(found[1])] and found[2] == [-float(at) for at in range(len(found[1]))]
        if found[3] == "length":
            assert found[:2] == (text.decode(tokens, skip_special=skip), tokens)

    check()


def test_a_stop_string_over_token_borders_does_not_leak(text: TextModel) -> None:
    tokens = text.encode("a cat. STOP it")
    end = len(text.encode("a cat. STOP"))
    assembler = text.assembler(SamplingParams(stop=("STOP",)))
    pieces = [assembler.take(Delta(1, [token])) for token in tokens[:end]]
    assert "".join(piece.text for piece in pieces) == "a cat. "
    assert (assembler.finish, assembler.stop) == ("stop", "STOP")
    found = whole(text.assembler(SamplingParams(stop=("STOP",), include_stop=True)), [tokens], finish=None)
    assert (found[0], found[1]) == ("a cat. STOP", tokens[:end]), "tokens behind the stop are dropped"


def test_stop_strings_wait_for_min_tokens(text: TextModel) -> None:
    tokens = text.encode("z.z.z.")
    assert len(tokens) == 6
    for min_tokens, wanted in ((0, "z"), (2, "z"), (3, "z.z"), (5, "z.z.z"), (9, "z.z.z.")):
        assert whole(text.assembler(SamplingParams(stop=(".",), min_tokens=min_tokens)), [tokens])[0] == wanted


@pytest.mark.parametrize(
    ("params", "text_", "stop"),
    [
        ({}, "the cat", "token"),
        ({"skip_special_tokens": False}, "the cat", "token"),
        ({"include_stop": True}, "the cat", "token"),
        ({"include_stop": True, "skip_special_tokens": False}, "the cat<|im_end|>", "token"),
        ({"stop": ("<|im_end|>",)}, "the cat", "token"),
        ({"stop": ("<|im_end|>",), "include_stop": True}, "the cat<|im_end|>", "<|im_end|>"),
        ({"stop": ("cat<|im",), "include_stop": True}, "the cat", "token"),
        ({"stop": ("cat<|im",), "include_stop": True, "skip_special_tokens": False}, "the cat<|im", "cat<|im"),
        ({"stop": (" cat",)}, "the", " cat"),
    ],
)
def test_a_token_that_ends_the_output(text: TextModel, params: dict[str, Any], text_: str, stop: str) -> None:
    (end,) = text.encode("<|im_end|>")
    tokens = [*text.encode("the cat"), end]
    found = whole(text.assembler(SamplingParams(**params)), [tokens], finish="stop", stop=end)
    assert (found[0], found[3], found[4]) == (text_, "stop", end if stop == "token" else stop)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    ("stop", "before", "after"),
    [
        ("<|im_end|>", "the cat", ""),
        ("<|im_end|>\n", "the cat", ""),
        ("cat<|im_end|>", "the ", ""),
        (" cat<|im_end|>\nthe<|im_start|>", "the", ""),
        ("<|im_end|>the", "the cat\nthe", " dog"),
        ("<|im_end|", "the cat\nthe dog", ""),
    ],
)
def test_stops_with_names_of_special_tokens(text: TextModel, stop: str, before: str, after: str, include: bool) -> None:
    tokens = text.encode("the cat<|im_end|>\nthe<|im_start|> dog")
    params = SamplingParams(stop=(stop,), include_stop=include)
    found = stop not in ("<|im_end|>the", "<|im_end|")
    for steps in ([tokens], [[token] for token in tokens]):
        shown, _, _, finish, matched = whole(text.assembler(params), steps)
        assert shown == before + (stop if include and found else after)
        assert (finish, matched) == (("stop", stop) if found else ("length", None))


def test_markers_that_are_shown_are_text_to_stops(text: TextModel) -> None:
    (end,) = text.encode("<|im_end|>")
    tokens = text.encode("the<|im_end|> cat")
    for stop, wanted in (("e<|im", "th"), ("<|im_end|>", "the"), ("e c", "the<|im_end|> cat")):
        assert whole(text.assembler(SamplingParams(stop=(stop,)), shown=frozenset({end})), [tokens])[0] == wanted
    assert whole(text.assembler(SamplingParams(stop=("e c",))), [tokens])[0] == "th", "left out, it is no border"


def test_what_is_known_of_the_prompt(text: TextModel) -> None:
    assembler = text.assembler(SamplingParams())
    one, two = TokenLogprobs(1, -0.5, 1, [], []), TokenLogprobs(2, -0.1, 1, [], [])
    assert assembler.take(Delta(1, [], cached_tokens=4, prompt_logprobs=[one])) == ("", [], [])
    assembler.take(Delta(1, text.encode("a"), prompt_logprobs=[two]))
    assert (assembler.num_cached_tokens, assembler.prompt_logprobs, assembler.finish) == (4, [one, two], None)


def test_half_a_character_at_the_end(text: TextModel) -> None:
    tokens = text.encode("é😀")[:-1]
    assert whole(text.assembler(SamplingParams()), [tokens])[0] == "é\ufffd"
    assert whole(text.assembler(SamplingParams()), [tokens], finish=None)[0] == "é"
    found = whole(text.assembler(SamplingParams(stop=("\ufffd",))), [tokens, []])
    assert (found[0], found[3], found[4]) == ("é", "stop", "\ufffd")
