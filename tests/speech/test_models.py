"""Transcripts of whole models: a small random one against transformers' logits and the rules written out, a real one against known words."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from sapwood import LLM
from sapwood.speech.audio import decoded
from sapwood.speech.features import LogMel
from sapwood.speech.transcript import Options
from sapwood.speech.vocabulary import PRECISION
from tests.grammar.test_marks import whispers
from tests.speech import voices
from tests.speech.voices import VOCABULARY as V
from tests.speech.voices import noise
from tests.speech.whisper import CONTEXT, write


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WhisperForConditionalGeneration]:
    path = tmp_path_factory.mktemp("random")
    return path, write(path)


def said_by(model: WhisperForConditionalGeneration, features: np.ndarray, prompt: list[int]) -> tuple[list[int], float]:
    """The twin: openai-whisper's greedy decoding, a whole forward for each token. Also the sum of log probabilities."""
    silent, output, total = (
        [*{3, 5, V.start, V.before, V.transcribe, V.translate, V.silence, V.first_mark - 1, 263}],
        [],
        0.0,
    )
    heard = torch.from_numpy(features)[None]
    while len(output) < min(CONTEXT // 2, CONTEXT - len(prompt)) and (not output or output[-1] != V.end):
        tokens = torch.tensor([prompt + output])
        with torch.inference_mode():
            logits = model(input_features=heard, decoder_input_ids=tokens, use_cache=False).logits[0, -1]
        may = torch.zeros(voices.SIZE, dtype=torch.bool)
        may[sorted(whispers(output, size=voices.SIZE, first=V.first_mark, end=V.end, most=51))] = True
        may[silent] = False
        logits = logits.masked_fill(~may, -torch.inf)
        if logits[V.first_mark :].logsumexp(-1) > logits[: V.first_mark].max():
            logits[: V.first_mark] = -torch.inf
        output.append(int(logits.argmax()))
        total += float(logits.log_softmax(-1)[output[-1]])
    return output, total


def test_a_random_model_says_what_the_rules_let_it(random: tuple[Path, WhisperForConditionalGeneration]) -> None:
    path, model = random
    llm = LLM(str(path), threads=1, kv_cache_dtype="float32", max_num_seqs=4)
    sounds = [noise(4.0), noise(33.0)]
    options = Options(language="en", by_previous=False, likely=-99.0, compression=99.0, probe=True)
    begin = [V.start, V.languages["en"], V.transcribe]
    for sound, found in zip(sounds, llm.transcribe(sounds, options), strict=True):
        mel = LogMel(sound.samples, 80)
        (first, *_) = found.segments
        tokens, total = said_by(model, mel.window(0, min(mel.num_frames, 3000)), begin)
        ended = tokens[-1] == V.end
        told = [token for one in found.segments if one.seek == 0 for token in one.tokens]
        assert told == tokens[: len(told)] and len(told) > 2
        assert first.avg_logprob == pytest.approx(total / (len(tokens) + 1 - ended), abs=1e-3)
        assert first.no_speech_prob is not None and 0 < first.no_speech_prob < 1
        assert found.num_windows >= 1
    sampled = [
        llm.transcribe(sounds[0], Options(language="en", temperature=1.0, seed=7, likely=-99.0))[0] for _ in range(2)
    ]
    assert sampled[0].text == sampled[1].text


WORDS = (
    "In the beginning the river was only a small stream between the stones. Children crossed it on their way to school, and "
    "nobody thought about it very much. After the first heavy rain the water rose by half a metre. The farmers moved their sheep to "
    "the hill, and the baker closed his shop early. On the third day the mayor called a meeting in the church. She spoke about "
    "bridges, pumps and money. An old woman asked who would pay for the new road. Nobody had an answer, so they drank tea and waited for "
    "the weather to change. When the sun came back the valley looked different."
)


def plain(text: str) -> list[str]:
    return "".join(sign for sign in text.lower() if sign.isalnum() or sign == " ").split()


def word_errors(said: str, wanted: str) -> float:
    """Insertions, deletions and substitutions for each word."""
    one, other = plain(said), plain(wanted)
    costs = list(range(len(other) + 1))
    for row, word in enumerate(one, 1):
        before, costs[0] = costs[0], row
        for column, right in enumerate(other, 1):
            before, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, before + (word != right)),
            )
    return costs[-1] / len(other)


@pytest.mark.slow
def test_a_real_model_knows_what_is_said(whisper_tiny: Path, tmp_path: Path) -> None:
    if (voice := shutil.which("espeak-ng")) is None:
        pytest.skip("espeak-ng speaks, and is not installed")
    subprocess.run([voice, "-v", "en-us", "-s", "150", "-w", str(tmp_path / "a.wav"), WORDS], check=True)
    data = (tmp_path / "a.wav").read_bytes()
    llm = LLM(str(whisper_tiny), threads=1)
    whole, clips = (llm.transcribe(data, Options(clips=clips))[0] for clips in (False, True))
    assert whole.language == "en" and whole.num_windows == 2
    for found in (whole, clips):
        assert word_errors(found.text, WORDS) < 0.12
        assert all(one.start < one.end for one in found.segments)
    seconds = decoded(data).seconds
    ends = [one.end for one in whole.segments]
    assert ends == sorted(ends) and abs(ends[-1] - seconds) < 1.0
    assert all(round(one.start / PRECISION, 3).is_integer() for one in whole.segments)


@pytest.mark.slow
def test_a_real_model_knows_when_words_are_said(whisper_tiny: Path, tmp_path: Path) -> None:
    """Of a recording in two parts with a pause between, whose place is known."""
    if (voice := shutil.which("espeak-ng")) is None:
        pytest.skip("espeak-ng speaks, and is not installed")
    parts = ["The farmers moved their sheep to the hill.", "She spoke about bridges and money."]
    sounds = []
    for at, said in enumerate(parts):
        subprocess.run([voice, "-v", "en-us", "-s", "150", "-w", str(tmp_path / f"{at}.wav"), said], check=True)
        sounds.append(decoded((tmp_path / f"{at}.wav").read_bytes()).samples)
    pause = np.zeros(3 * 16000, np.int16)
    (found,) = LLM(str(whisper_tiny), threads=1).transcribe(
        np.concatenate([sounds[0], pause, sounds[1]]), Options(words=True)
    )
    words = found.words
    assert plain("".join(word.word for word in words)) == plain(found.text)
    assert all(one.start <= one.end <= other.start + 1e-6 for one, other in pairwise(words))
    (bridges,) = [word for word in words if "bridges" in word.word]
    second = (len(sounds[0]) + len(pause)) / 16000
    assert second + 0.3 < bridges.start < second + 1.5
