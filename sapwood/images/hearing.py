"""How models that hear take recordings: log-mel spectra of windows, as transformers' extractor for Whisper computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sapwood.arch.sound import MOMENTS, SoundTower
from sapwood.base.errors import ModelError
from sapwood.base.media import Media
from sapwood.images.look import Expansion
from sapwood.speech.audio import RATE, Samples
from sapwood.speech.features import HOP, LogMel


class Hearing:
    """For a tower, and the settings of the family's feature extractor. `token` is what the chat template writes for a recording."""

    def __init__(self, tower: SoundTower, fields: Mapping[str, Any], token: int) -> None:
        """Raises ModelError for an extractor that is not Whisper's, or does not fit the tower."""
        self.token, self._tower = token, tower
        self._frames = MOMENTS * tower.positions
        self._size = self._frames * HOP  # samples of a window
        wanted = {"feature_size": tower.bins, "hop_length": HOP, "n_fft": 400, "sampling_rate": RATE, "dither": 0}
        wanted |= {"n_samples": self._size, "nb_max_frames": self._frames, "padding_value": 0, "do_normalize": False}
        for name, value in wanted.items():
            found = fields.get(name)
            if found is not None and found != value:
                raise ModelError(f"preprocessor_config.json: {name} must be {value!r} for this model, got {found!r}.")

    @property
    def most_seconds(self) -> float:
        """Of a recording."""
        windows = self._tower.most_windows
        return math.inf if windows is None else windows * self._size / RATE

    def prepare(self, samples: Samples, most: int) -> Media:
        """Raises ValueError, saying why, for a recording that is too short, or has more than `most` positions."""
        tower, count = self._tower, math.ceil(len(samples) / self._size)
        lengths = [tower.positions] * count
        if not tower.whole:
            # The last window ends with the recording.
            frames = math.ceil((len(samples) - (count - 1) * self._size) / HOP)
            lengths[-1] = (frames - 1) // MOMENTS + 1
        if len(lengths) > 1 and lengths[-1] < tower.group:
            lengths.pop()
        length = sum(one // tower.group for one in lengths)
        if length < 1:
            raise ValueError("it is too short to be heard")
        if length > most:
            raise ValueError(
                f"it has {len(samples) / RATE:.1f} s, which take {length} positions, and the model's context has {most}: cut it"
            )
        arrays = {"features": self._features(samples, lengths), "windows": np.array(lengths, np.int32)}
        return Media.of("audio", arrays, length)

    def _features(self, samples: Samples, lengths: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        tower, count = self._tower, len(lengths)
        if tower.whole:
            # One recording, whose loudest moment sets the floor of all windows.
            mel = LogMel(samples, tower.bins, count * self._size)
            return np.concatenate([mel.frames(index * self._frames, self._frames) for index in range(count)], axis=1)
        cuts = (samples[index * self._size : (index + 1) * self._size] for index in range(count))
        mels = [LogMel(cut, tower.bins, self._size) for cut in cuts]
        return np.concatenate(
            [mel.frames(0, tower.moments(length)) for mel, length in zip(mels, lengths, strict=True)], axis=1
        )

    def expand(self, media: Media) -> Expansion:
        return Expansion([self.token] * media.length, [(0, media.length, 0)])
