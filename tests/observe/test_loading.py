"""How far weights are, on a terminal and in the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from sapwood.observe.loading import loading

GIB = 1 << 30


def told(caplog: pytest.LogCaptureFixture, seconds: Iterator[float]) -> list[str]:
    with caplog.at_level(logging.INFO, "sapwood.observe.loading"), loading(lambda: next(seconds)) as progress:
        for done in (0, GIB, 2 * GIB):
            progress("m", done, 2 * GIB)
        progress("draft", 1, 1)
    return [record.getMessage() for record in caplog.records]


def test_without_a_terminal_a_line_says_what_was_read(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(caplog, iter([0.0, 0.1, 2.0, 4.0, 4.0, 4.0, 4.0]))
    assert lines == ["m: 2.00 GiB of weights read in 4.0 s (0.50 GiB/s)", "draft: 0.00 GiB of weights read in 0.0 s"]
    assert "loading" not in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar_where_it_takes_a_while(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told(caplog, iter([0.0, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3]))
    assert "loading" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told(caplog, iter([0.0, 0.1, 2.0, 4.0, 4.0, 4.0, 4.0]))
    assert "loading m" in capsys.readouterr().err
