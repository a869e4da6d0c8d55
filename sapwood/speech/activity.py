"""Where there is sound at all, by its energy: what is silent need not be listened to, and is where recordings may be cut.

Suffix legend: F frames of 10 ms.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sapwood.speech.audio import Samples
from sapwood.speech.features import HOP, WINDOW_FRAMES

Levels = NDArray[np.float32]

SILENT = -60.0
"""Decibels below full scale: nobody is heard below."""

_BLOCK = 1 << 16  # frames at a time
_ABOVE_QUIET, _BELOW_LOUD = 6.0, 30.0  # decibels
_MARGIN, _GAP = 20, 50  # frames: what is kept around sound, and shorter pauses belong to it


class Clip(NamedTuple):
    """Frames [start, end) of a recording."""

    start: int
    end: int


def levels_of(samples: Samples) -> Levels:
    """Decibels of each frame, relative to full scale: [F]."""
    num_frames = len(samples) // HOP
    found_F = np.empty(num_frames, np.float32)
    for begin in range(0, num_frames, _BLOCK):
        end = min(begin + _BLOCK, num_frames)
        block = samples[begin * HOP : end * HOP].astype(np.float32).reshape(-1, HOP) / 32768.0
        found_F[begin:end] = 10 * np.log10(np.maximum((block * block).mean(1), 1e-12))
    return found_F


def spans_of(levels_F: Levels) -> list[Clip]:
    """Where there is speech, or other sound that stands out: with a margin, and over short pauses."""
    if not len(levels_F):
        return []
    quiet, loud = np.percentile(levels_F, (10, 95))
    heard_F = levels_F > max(SILENT, min(quiet + _ABOVE_QUIET, loud - _BELOW_LOUD))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], heard_F, [False]]).astype(np.int8)))
    found: list[Clip] = []
    for start, end in edges.reshape(-1, 2).tolist():
        span = Clip(max(start - _MARGIN, 0), min(end + _MARGIN, len(levels_F)))
        if found and span.start - found[-1].end < _GAP:
            span = Clip(found.pop().start, span.end)
        found.append(span)
    return found


def clips_of(levels_F: Levels, most: int = WINDOW_FRAMES) -> list[Clip]:
    """The recording cut at pauses into clips of `most` frames or fewer, but where nobody pauses for so long; silence around them is left
    out."""
    found: list[Clip] = []
    for span in spans_of(levels_F):
        if found and span.end - found[-1].start <= most:
            found[-1] = Clip(found[-1].start, span.end)
        else:
            found.append(span)
    assert all(one.end <= other.start for one, other in pairwise(found))
    return found


def is_silent(levels_F: Levels, clip: Clip) -> bool:
    """Whether nothing can be heard in it."""
    some_F = levels_F[clip.start : clip.end]
    return not len(some_F) or float(some_F.max()) < SILENT
