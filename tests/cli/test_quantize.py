"""What `sapwood quantize` measures before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.cli import quantize


def test_a_model_is_measured_on_a_text(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = quantize.measure(tiny_model, "Two ferries cross here, and neither of them on a Monday. " * 3)
    assert 100 < found.perplexity < 10_000, "of 258 tokens that random weights tell apart badly"
    assert found.speed > 0


def test_the_text_that_comes_with_it_is_there() -> None:
    assert len(quantize._text(None).split()) > 500
