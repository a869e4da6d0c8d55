"""A loop that is at one thing for long is said to be, from beside it."""

from __future__ import annotations

import pytest

from sapwood.base.wire import Beat
from sapwood.engine import pulse
from sapwood.engine.pulse import Pulse
from tests.waiting import eventually


def test_only_a_long_turn_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.02)
    said: list[Beat] = []
    with Pulse(said.append, lambda: 5) as beating:
        eventually(lambda: not beating._works.is_set() and not said)
        beating.turn()
        eventually(lambda: len(said) >= 3)
        assert all(beat.steps == 5 and beat.seconds > 0.02 for beat in said)
        assert [beat.seconds for beat in said] == sorted(beat.seconds for beat in said)
        beating.rest()
    quiet = len(said)
    with Pulse(said.append, lambda: 5) as beating:
        beating.turn()
        beating.rest()
    assert len(said) == quiet
