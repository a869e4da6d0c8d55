"""Windows, marks and fallbacks, with models that say what they are told to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.speech.audio import Audio
from sapwood.speech.transcript import Options, checked_language
from sapwood.speech.transcription import Ask, Asking, Heard, Transcription
from tests.speech.voices import VOCABULARY, ids, mark, noise

Model = Callable[[Ask], tuple[list[int], float]]
V = VOCABULARY


def drive(part: Asking, model: Model, asked: list[Ask]) -> None:
    """Answer what it asks, until it has ended. A model says tokens, and the mean of their log probabilities."""
    try:
        ask = next(part)
        while True:
            asked.append(ask)
            tokens, logprob = model(ask)
            named = [-4.0] * len(ask.params.logprob_token_ids)
            tokens = tokens[: ask.params.max_tokens]
            ask = part.send(Heard(tokens, [TokenLogprobs(token, logprob, 1, [], [], named) for token in tokens]))
    except StopIteration:
        pass


def transcribed(audio: Audio, model: Model, **options: object) -> tuple[Transcription, list[Ask], list[str]]:
    one = Transcription(audio, V, Options(**options), num_mels=80, context=448, aligns=((0, 0),))  # type: ignore[arg-type]
    asked: list[Ask] = []
    told: list[str] = []
    one.survey()
    drive(one.prepare(), model, asked)
    for part in reversed(one.parts(lambda segments: told.extend(segment.text for segment in segments))):
        drive(part, model, asked)
    return one, asked, told


def starts(asked: list[Ask]) -> list[int]:
    return [ask.window.clip.start for ask in asked]


def test_the_next_window_begins_where_the_last_pair_of_marks_stands() -> None:
    said = [[mark(0), *ids(" one"), mark(10), mark(10.5), *ids(" two"), mark(20), mark(20), *ids(" thr")],
            [mark(0), *ids(" three"), mark(8), mark(8), *ids(" four"), mark(15)],
            [mark(0), *ids(" five"), mark(5)]]  # fmt: skip
    answers = iter(said)
    one, asked, told = transcribed(noise(65.0), lambda ask: ([*next(answers), V.end], -0.1), language="en")
    assert starts(asked) == [0, 2000, 5000] and [ask.window.clip.end for ask in asked] == [3000, 5000, 6500]
    found = one.transcript
    assert [(s.start, s.end, s.text) for s in found.segments] == [
        (0, 10, " one"), (10.5, 20, " two"), (20, 28, " three"), (28, 35, " four"), (50, 55, " five"),
    ]  # fmt: skip
    assert found.text == "one two three four five" == "".join(told).strip()
    assert found.language_name == "english" and found.num_windows == found.num_tries == 3 and found.duration == 65
    begin = [V.start, V.languages["en"], V.transcribe]
    assert asked[0].tokens == begin
    before = [token for segment in found.segments[:2] for token in segment.tokens]
    assert asked[1].tokens == [V.before, *before, *begin]
    params = asked[0].params
    assert params.timestamps == V.timestamps and params.stop_token_ids == (V.end,) and params.max_tokens == 224
    assert {run[0] for run in params.forbidden} == set(V.silent)
    features = asked[1].window.media().arrays["features"]
    assert (features.dtype, features.shape) == ("float32", (80, 3000)) and asked[1].window.media().length == 1500


def test_marks_that_say_little() -> None:
    one, asked, _ = transcribed(noise(40.0), lambda ask: ([*ids(" no marks"), V.end], -0.1), language="en")
    assert [(s.start, s.end) for s in one.transcript.segments] == [(0, 30), (30, 40)] and starts(asked) == [0, 3000]
    stuck = [mark(0), *ids(" a"), mark(0), mark(0), *ids(" b")]
    one, asked, _ = transcribed(noise(0.5), lambda ask: (stuck, -0.1), language="en")
    assert len(asked) == 25, "each window begins a mark later"
    one, _, _ = transcribed(noise(5.0), lambda ask: ([mark(0), *ids("  "), mark(3), V.end], -0.1), language="en")
    assert one.transcript.segments == [] and one.transcript.text == ""


def test_what_repeats_itself_or_is_unlikely_is_tried_again() -> None:
    loop = [mark(0), *ids(" again" * 40), mark(9), V.end]
    fine = [mark(0), *ids(" fine"), mark(9), V.end]

    def model(ask: Ask) -> tuple[list[int], float]:
        if ask.params.max_tokens == 1:
            return [V.start], -0.5
        return (loop, -0.1) if ask.params.temperature == 0 else (fine, -2.0 if ask.params.temperature < 0.6 else -0.2)

    one, asked, _ = transcribed(noise(10.0), model, language="en", seed=3)
    assert [ask.params.temperature for ask in asked] == [0.0, 0.2, 0.0, 0.4, 0.6] and asked[1].params.seed == 3
    (segment,) = one.transcript.segments
    assert segment.temperature == 0.6 and segment.text == " fine"
    assert segment.no_speech_prob == pytest.approx(np.exp(-4)), "asked once, when it might have mattered"
    assert asked[2].tokens == [V.start]
    one, asked, _ = transcribed(noise(10.0), lambda ask: (loop, -0.1), language="en", temperature=0.8)
    assert [ask.params.temperature for ask in asked] == [0.8, 1.0], "the last one stands"


def test_a_window_is_told_of_the_one_before_unless_that_was_guessed() -> None:
    said = [mark(0), *ids(" word"), mark(29), mark(29), V.end]

    def model(ask: Ask) -> tuple[list[int], float]:
        if ask.params.max_tokens == 1:
            return [V.start], -0.5
        return said, -2.0 if ask.params.temperature < 0.6 and ask.window.clip.start == 0 else -0.1

    _, asked, _ = transcribed(noise(60.0), model, language="en", prompt=" Names: <|endoftext|>Ada ")
    assert asked[0].tokens[0] == V.before and asked[0].tokens[1:-3] == ids(" Names: Ada")
    assert [V.before in ask.tokens for ask in asked if ask.window.clip.start > 0] == [False, True]
    _, asked, _ = transcribed(noise(60.0), lambda ask: (said, -0.1), language="en", by_previous=False, prompt="x")
    assert [V.before in ask.tokens for ask in asked] == [True, False, False]
    long = [mark(0), *ids(" word" * 40), mark(29), mark(29), V.end]
    _, asked, _ = transcribed(noise(58.0), lambda ask: (long, -0.1), language="en", compression=99.0)
    assert len(asked[1].tokens) == 1 + 202 + 3 and asked[1].params.max_tokens == 224
    _, asked, _ = transcribed(noise(5.0), lambda ask: (long, -0.1), language="en", compression=99.0, prompt="w" * 300)
    assert len(asked[0].tokens) == 1 + 223 + 3 and asked[0].params.max_tokens == 221


def test_silence_is_neither_listened_to_nor_believed() -> None:
    samples = np.concatenate([np.zeros(16000 * 31, np.int16), noise(20.0).samples])
    said = [mark(0), *ids(" hm"), mark(3), V.end]
    _, asked, _ = transcribed(Audio(samples), lambda ask: (said, -0.1), language="en")
    assert starts(asked) == [3000]
    one, asked, _ = transcribed(Audio(np.zeros(16000, np.int16)), lambda ask: (said, -0.1))
    assert not asked and one.transcript.segments == [] and one.transcript.duration == 1
    one, asked, _ = transcribed(noise(10.0), lambda ask: (said, -1.5), language="en", silent=0.01)
    assert [ask.params.temperature for ask in asked] == [0.0, 0.0] and one.transcript.segments == []


def test_clips_are_cut_at_pauses_and_told_in_their_order() -> None:
    voice, pause = noise(8.0).samples, np.zeros(16000 * 4, np.int16)
    audio = Audio(np.concatenate([voice, pause, voice, pause, voice, pause, voice]))
    one, asked, told = transcribed(
        audio,
        lambda ask: ([mark(0), *ids(f" {ask.window.clip.start // 100}s"), mark(7), V.end], -0.1),
        language="en",
        clips=True,
    )
    assert starts(asked) == [2380, 0], "the second is asked first here"
    assert told == [" 0s", " 23s"] == [segment.text for segment in one.transcript.segments]
    assert [segment.start for segment in one.transcript.segments] == [0, 23.8]


def test_languages_are_found_out_and_checked() -> None:
    def model(ask: Ask) -> tuple[list[int], float]:
        if ask.params.allowed_token_ids:
            assert ask.params.allowed_token_ids == tuple(V.languages.values()) and ask.tokens == [V.start]
            return [V.languages["pt"]], -0.1
        return [mark(0), *ids(" oi"), mark(1), V.end], -0.1

    one, asked, _ = transcribed(noise(3.0), model, task="translate")
    assert one.transcript.language == "pt" and asked[1].tokens == [V.start, V.languages["pt"], V.translate]
    assert (
        checked_language("pt-BR", V) == checked_language(" Portuguese", V) == "pt" and checked_language("", V) is None
    )
    with pytest.raises(RequestError, match="language 'klingon'"):
        checked_language("klingon", V)
    with pytest.raises(RequestError, match="temperature"):
        Options(temperature=1.5).check(V)


def test_how_likely_silence_is_can_be_wanted() -> None:
    said = [mark(0), *ids(" hm"), mark(3), V.end]
    one, asked, _ = transcribed(noise(3.0), lambda ask: (said, -0.1), language="en", probe=True)
    (segment,) = one.transcript.segments
    assert segment.no_speech_prob == pytest.approx(np.exp(-4.0)) and len(asked) == 2
    params: SamplingParams = asked[1].params
    assert params.logprob_token_ids == (V.silence,) and params.max_tokens == 1
