"""Mel spectra, against transformers'."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from sapwood.speech.features import WINDOW_FRAMES, LogMel

CLOSE = 1e-5


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Some tones that come and go, and a little noise."""
    draw = np.random.default_rng(seed)
    times = np.arange(int(16000 * seconds)) / 16000
    tones = sum(np.sin(2 * np.pi * hertz * times) * (np.sin(times * rate) > 0) for hertz, rate in ((220, 3), (1800, 5)))
    return np.int16(6000 * tones + draw.normal(0, 60, len(times)))


@pytest.mark.parametrize(("num_mels", "seconds"), [(80, 2.5), (128, 29.5)])
def test_as_transformers_computes_them(num_mels: int, seconds: float) -> None:
    samples = sound(seconds)
    samples = np.concatenate([samples, np.zeros(480_000 - len(samples), np.int16)])
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    found = LogMel(samples, num_mels).window(0)
    assert found.dtype == np.float32 and found.shape == (num_mels, WINDOW_FRAMES)
    # Its arithmetic in numpy; what it computes with PyTorch is in float32 throughout, and as far from this as from ours.
    wanted = extractor._np_extract_fbank_features(samples[None].astype(np.float32) / 32768, "cpu")[0]
    np.testing.assert_allclose(found, wanted, atol=CLOSE)


def test_a_long_recording_has_one_floor_and_is_cut_where_it_is_asked() -> None:
    samples = sound(70.0)
    samples[: 16000 * 35] //= 16
    mel = LogMel(samples, 80)
    assert mel.num_frames == 7000
    one, other = mel.window(1000), mel.window(2500)
    np.testing.assert_allclose(one[:, 1500:], other[:, :1500], atol=1e-6)
    last = mel.window(6500, 500)
    assert not last[:, 500:].any() and last[:, :500].any()
    assert one.min() >= mel.window(4000).max() - 2.0 - 1e-6


@pytest.mark.parametrize("num_samples", [1, 100, 250])
def test_hardly_any_sound(num_samples: int) -> None:
    mel = LogMel(np.full(num_samples, 900, np.int16), 80)
    assert np.isfinite(mel.window(0, max(mel.num_frames, 1))).all()
