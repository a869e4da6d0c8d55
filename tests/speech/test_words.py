"""When words were said, as transformers finds it: weights of cross-attention, the cheapest way through them, and words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper import generation_whisper as theirs

from sapwood import LLM
from sapwood.base.errors import ModelError
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import Align
from sapwood.hub.speech import speech_of
from sapwood.speech.features import LogMel
from sapwood.speech.transcript import Options
from sapwood.speech.words import Word, joined, moments, split
from tests.speech.voices import VOCABULARY as V
from tests.speech.voices import Bytes, ids, noise
from tests.speech.whisper import write

HEADS = ((1, 0), (0, 1), (1, 1))
BEGIN = [V.start, V.languages["en"], V.transcribe]


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WhisperForConditionalGeneration]:
    path = tmp_path_factory.mktemp("random")
    return path, write(path)


@torch.inference_mode()
def seconds_of(
    model: WhisperForConditionalGeneration,
    features: np.ndarray,
    tokens: list[int],
    skip: int,
    frames: int,
    heads: Any = HEADS,
) -> np.ndarray:
    """transformers': of all tokens behind the first."""
    model.set_attn_implementation("eager")
    out = model(
        input_features=torch.from_numpy(features.copy())[None],
        decoder_input_ids=torch.tensor([tokens]),
        output_attentions=True,
    )
    ids = torch.tensor([tokens])

    class Made(SimpleNamespace):
        def __contains__(self, name: str) -> bool:
            return hasattr(self, name)

    made = Made(cross_attentions=[out.cross_attentions], sequences=ids)
    found = model._extract_token_timestamps(made, heads, num_frames=2 * frames, num_input_ids=skip)
    return found[0, skip:-1].numpy()


class Deaf:
    def wake(self) -> None: ...


def matrices(llm: LLM, asked: list[tuple[list[int], Align]], features: np.ndarray) -> list[np.ndarray]:
    """Of texts that are asked about together."""
    from sapwood.base.media import Media

    engine = llm.engine
    media = [Media.of("audio", {"features": features}, 1500)]
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    streams = [engine.submit(tokens, params, Deaf(), task=task, media=media) for tokens, task in asked]
    while not all(stream.finished for stream in streams):
        engine.step()
    found = []
    for stream, (_, task) in zip(streams, asked, strict=True):
        delta = stream.take()
        assert delta is not None and delta.finish is not None
        found.append(np.frombuffer(delta.vector, np.float32).reshape(-1, task.frames))
        stream.close()
    return found


def test_tokens_begin_when_transformers_says(random: tuple[Path, WhisperForConditionalGeneration]) -> None:
    """Several texts about one recording, at once and in chunks, of which nothing comes from the cache."""
    path, model = random
    features = LogMel(noise(9.0).samples, 80).window(0, 900)
    texts = [[*BEGIN, V.unmarked, *ids(said)] for said in (" a small boat went up", " no", " and the rain came")]
    asked = [(tokens, Align(HEADS, 3, 450)) for tokens in texts]
    for options in ({}, {"max_num_batched_tokens": 6, "chunked_prefill_size": 6}):
        llm = LLM(str(path), threads=1, kv_cache_dtype="float32", max_num_seqs=4, **options)
        for _ in range(2):
            for matrix, (tokens, task) in zip(matrices(llm, asked, features), asked, strict=True):
                assert matrix.shape == (len(tokens) - 3, 450)
                wanted = seconds_of(model, features, tokens, 3, task.frames)
                assert np.abs(0.02 * moments(matrix) - wanted).max() <= 0.02


def test_transcripts_have_words(random: tuple[Path, WhisperForConditionalGeneration]) -> None:
    path, model = random
    llm = LLM(str(path), threads=1, kv_cache_dtype="float32", max_num_seqs=4)
    sound = noise(33.0)
    options = Options(language="en", by_previous=False, likely=-99.0, compression=99.0)
    (plain,) = llm.transcribe(sound, options)
    (found,) = llm.transcribe(sound, Options(**{**options.__dict__, "words": True}))
    assert [one.text for one in found.segments] == [one.text for one in plain.segments]
    assert plain.words == [] and plain.segments[0].words is None
    mel, heads = LogMel(sound.samples, 80), ((1, 0), (1, 1))
    for seek in {one.seek for one in found.segments}:
        some = [one for one in found.segments if one.seek == seek]
        text = [token for one in some for token in one.tokens if token < V.end]
        count = min(3000, mel.num_frames - seek)
        tokens = [*BEGIN, V.unmarked, *text]
        times = seek / 100 + seconds_of(model, mel.window(seek, count), tokens, 3, count // 2, heads)
        words = [word for one in some for word in one.words or ()]
        assert words[0].start == pytest.approx(times[0], abs=0.021)
        assert words[-1].end == pytest.approx(times[-1], abs=0.021)
        assert all(0 < word.probability <= 1 for word in words)
    for one in found.segments:
        assert "".join(word.word for word in one.words or ()) == one.text


@pytest.mark.parametrize(("tokens", "length"), [(1, 9), (7, 40), (30, 31), (12, 5)])
def test_the_cheapest_way_is_that_of_transformers(tokens: int, length: int) -> None:
    draw = np.random.default_rng(tokens)
    for _ in range(5):
        matrix = draw.normal(size=(tokens, length)).astype(np.float32)
        text, time = theirs._dynamic_time_warping(-matrix.astype(np.float64))
        jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
        wanted = time[jumps][-tokens:] if (text >= 0).all() else None
        if wanted is not None:
            assert moments(matrix).tolist() == np.maximum(wanted, 0).tolist()


class Pieces:
    """Tokens are numbers of these."""

    names = (" He", " sa", "id", ":", ' "', "Ay", ".", '"')

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return "".join(self.names[id] for id in ids)


def test_words_of_a_text() -> None:
    found = split(range(8), Pieces(), "en")
    assert found == [(" He", 1), (" said", 2), (":", 1), (' "Ay', 2), (".", 1), ('"', 1)]
    assert split("né".encode(), Bytes(), "pt") == [("né", 3)]
    assert split("né".encode(), Bytes(), "zh") == [("n", 1), ("é", 2)]
    words = [Word(word, at, at + 1, 1.0) for at, word in enumerate([" He", " said", ":", ' "', "Ay", ".", '"'])]
    assert [(one.word, one.start, one.end) for one in joined(words)] == [
        (" He", 0, 1), (" said:", 1, 2), (' "Ay."', 4, 5),
    ]  # fmt: skip


def test_heads_that_files_name() -> None:
    config = {"model_type": "whisper", "decoder_layers": 2, "decoder_attention_heads": 2}
    assert speech_of(config, {}).aligns == ((1, 0), (1, 1))  # type: ignore[union-attr]
    assert speech_of(config, {"alignment_heads": [[0, 1]]}).aligns == ((0, 1),)  # type: ignore[union-attr]
    for wrong in ([[0, 2]], [[2, 0]], [[0]], [], "x", [[True, 0]]):
        with pytest.raises(ModelError, match="alignment_heads"):
            speech_of(config, {"alignment_heads": wrong})
