"""What models of the Whisper family hear: logarithms of mel spectra, in numpy.

Suffix legend: N samples, F frames of 10 ms, K frequencies, M mels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sapwood.speech.audio import RATE, Samples

HOP = 160
"""Samples of a frame, 10 ms."""
WINDOW_FRAMES = 3000
"""Frames of a window of 30 s, which a model hears at once."""
FRAMES_PER_SECOND = RATE // HOP

_SIZE = 400
_FLOOR = 1e-10
_DEPTH = 8.0  # decades below the loudest that are still heard
_HIGHEST = RATE / 2

Floats = NDArray[np.float32]


class LogMel:
    """Spectra of one recording, a window at a time: `windows` of it are computed when they are asked for, so memory does not grow with its
    length.

    The arithmetic is openai-whisper's (`log_mel_spectrogram` of the recording with 30 s of silence behind it): the loudest mel of the
    whole recording sets the floor of all windows. Of a recording within 30 s it is transformers' `WhisperFeatureExtractor`, too.

    With a `size` it is that extractor's of the recording with silence up to so many samples, at whose end they are mirrored.
    """

    def __init__(self, samples: Samples, num_mels: int, size: int | None = None) -> None:
        self._samples, self._size = samples, size
        self._filters_MK = mel_filters(num_mels)
        self._loudest: float | None = None

    @property
    def num_frames(self) -> int:
        """Frames that have sound of the recording."""
        return len(self._samples) // HOP

    def window(self, start: int, count: int = WINDOW_FRAMES) -> Floats:
        """Frames [start, start + count), and zeros up to a whole window: float32 [M, 3000]."""
        found_MF = np.zeros((len(self._filters_MK), WINDOW_FRAMES), np.float32)
        found_MF[:, :count] = self.frames(start, count)
        return found_MF

    def frames(self, start: int, count: int) -> Floats:
        """Frames [start, start + count): float32 [M, F]."""
        if self._loudest is None:
            # What is behind the recording is as silent as can be.
            end = self.num_frames + 2 if self._size is None else min(self.num_frames + 2, self._size // HOP)
            blocks = range(0, end, WINDOW_FRAMES)
            self._loudest = max(float(self._log(at, min(WINDOW_FRAMES, end - at)).max()) for at in blocks)
        logs_MF = np.maximum(self._log(start, count), self._loudest - _DEPTH)
        return ((logs_MF + 4.0) / 4.0).astype(np.float32)

    def _log(self, start: int, count: int) -> NDArray[np.float64]:
        """log10 of the mels of some frames: [M, F]."""
        sound_N = self._padded(start * HOP - _SIZE // 2, (start + count - 1) * HOP + _SIZE // 2)
        frames_FN = np.lib.stride_tricks.sliding_window_view(sound_N, _SIZE)[::HOP]
        spectra_FK = np.fft.rfft(frames_FN * _HANN, axis=1)
        powers_FK = spectra_FK.real**2 + spectra_FK.imag**2
        return np.log10(np.maximum(self._filters_MK @ powers_FK.T, _FLOOR))

    def _padded(self, begin: int, end: int) -> NDArray[np.float64]:
        """Samples [begin, end): mirrored before the first one, silent behind the last, mirrored behind `size`."""
        if self._size is not None and end > self._size:
            return np.pad(self._padded(begin, self._size), (0, end - self._size), "reflect")
        size = len(self._samples)
        inner = self._samples[max(begin, 0) : max(min(end, size), 0)].astype(np.float64) / 32768.0
        before = np.zeros(0)
        if begin < 0:
            mirrored = np.zeros(-begin)
            some = self._samples[1 : 1 - begin].astype(np.float64) / 32768.0
            mirrored[: len(some)] = some
            before = mirrored[::-1]
        behind = np.zeros(end - begin - len(inner) - len(before))
        return np.concatenate([before, inner, behind])


_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_SIZE) / _SIZE)


def mel_filters(num_mels: int) -> NDArray[np.float64]:
    """Slaney's triangles of equal area, up to 8 kHz: [M, 201]."""
    highest = _mel(np.array(_HIGHEST))
    edges = _hertz(np.linspace(0.0, float(highest), num_mels + 2))
    hertz_K = np.linspace(0.0, _HIGHEST, _SIZE // 2 + 1)
    widths = np.diff(edges)
    slopes = edges[:, None] - hertz_K
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]


_KNEE, _LINEAR = 1000.0, 200.0 / 3  # hertz up to which the scale is linear, and hertz of one mel there
_STEP = np.log(6.4) / 27.0  # of the logarithm, of one mel above


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        above = _KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP
    return np.where(hertz < _KNEE, hertz / _LINEAR, above)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _KNEE * np.exp(_STEP * (mels - _KNEE / _LINEAR))
    return np.where(mels < _KNEE / _LINEAR, mels * _LINEAR, above)
