"""Engines that hear: what they say to prompts with recordings is what transformers says, however the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sapwood.arch.sound import SoundTower
from sapwood.base.errors import ModelError
from sapwood.images.gallery import Archive
from sapwood.images.hearing import Hearing
from sapwood.images.sources import Sources
from tests import hearing
from tests.engine.test_sight import CLOSE, NUM_TOKENS, Said, counted, engine_of
from tests.hearing import AUDIO, HEARING, SETTINGS, recording

Parts = Sequence[int | np.ndarray]


def some_prompts(family: str) -> list[list[int | np.ndarray]]:
    """Recordings within text, of different lengths, longer than a window where there may be several, and none."""
    long = 0.6 if family == "qwen2-audio" else 1.7
    return [
        [5, 6, 7, recording(0.43), 8, 9, 10, 11],
        [12, recording(long, 1), 13, 14, recording(1.0, 2), 15],
        [20, 21, 22, 23, 24],
        [5, 6, 7, recording(0.43, 3), 8],
    ]


def check(family: str, said: Said, prompts: Sequence[Parts]) -> None:
    for id, parts in enumerate(prompts):
        theirs = hearing.logprobs(
            family, said.prompts[id] + said.tokens[id], [part for part in parts if not isinstance(part, int)]
        )
        assert len(said.logprobs[id]) == len(said.tokens[id]) == NUM_TOKENS
        for place, (token, told) in enumerate(zip(said.tokens[id], said.logprobs[id], strict=True)):
            wanted = theirs[len(said.prompts[id]) - 1 + place]
            assert token == int(wanted.argmax())
            assert (torch.tensor(told.top_logprobs) - wanted[told.top_ids]).abs().max() < CLOSE


@pytest.mark.parametrize("family", HEARING)
def test_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Together, again from the cache, and in chunks that end within recordings."""
    made, prompts = hearing.Prepared(family, hearing.save(family, tmp_path)), some_prompts(family)
    engine, facts = engine_of(tmp_path)
    assert facts.media == ("audio",)
    check(family, Said(engine, made, prompts), prompts)
    encoded = counted(engine, "encoded_media")
    assert encoded == 4
    again = Said(engine, made, prompts)
    check(family, again, prompts)
    assert counted(engine, "encoded_media") == encoded, "what is in the cache has been heard"
    for id, prompt in enumerate(again.prompts):
        assert again.cached[id] >= (len(prompt) - 1) // facts.page_size * facts.page_size
    engine.executor.shutdown()

    engine, _ = engine_of(tmp_path, max_num_batched_tokens=7, prefix_caching=False)
    check(family, Said(engine, made, prompts), prompts)
    engine.executor.shutdown()


@pytest.mark.parametrize("samples", [480, 6880, 15990, 16000])
def test_features_are_those_of_transformers(samples: int, tmp_path: Path) -> None:
    """Of what the encoder hears, to the end of a window, where sound is mirrored."""
    made = hearing.Prepared("qwen2-audio", hearing.save("qwen2-audio", tmp_path))
    sound = recording(1.0)[:samples]
    media = made.prepare(sound)
    found = media.arrays["features"].numpy()
    theirs = hearing.processed("qwen2-audio", [sound])["input_features"][0].numpy()
    np.testing.assert_allclose(found, theirs[:, : found.shape[1]], atol=2e-5)
    frames = -(-samples // 160)
    assert media.length == ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert media.arrays["windows"].numpy().tolist() == [(frames - 1) // 2 + 1]


def test_what_cannot_be_heard() -> None:
    tower = SoundTower(out=8, roots=(), bins=16, positions=50)
    made = Hearing(tower, SETTINGS, AUDIO)
    assert made.most_seconds == 1.0
    with pytest.raises(ValueError, match="too short"):
        made.prepare(recording(1.0)[:320], 100)
    with pytest.raises(ValueError, match=r"0\.5 s, which take 12 positions"):
        made.prepare(recording(0.5), 11)
    with pytest.raises(ModelError, match="feature_size must be 16 for this model, got 80"):
        Hearing(tower, {"feature_size": 80}, AUDIO)


def test_a_remnant_that_makes_no_vector_is_left_out() -> None:
    tower = SoundTower(out=8, roots=(), bins=16, positions=50, most_windows=2)
    media = Hearing(tower, SETTINGS, AUDIO).prepare(recording(1.01)[:16160], 100)
    assert media.length == 25 and media.arrays["windows"].numpy().tolist() == [50]


def test_a_device_bounds_a_recording() -> None:
    tower = SoundTower(out=8, roots=(), bins=16, positions=1500, most_windows=20)
    for device, most in (("cpu", 120.0), ("cuda:1", 600.0)):
        archive = Archive(
            Hearing(tower, SETTINGS | {"chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000}, AUDIO),
            Sources(hosts=(), root=None),
            seconds=3600,
        )
        archive.bound(None, device)
        assert archive._limits.seconds == most
