"""The scripts of bench/ that a machine without a GPU can run, as far as it can: they reach into the engine, which moves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_is_taken_apart(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("step").main([str(tiny_model), "--rows", "2", "--steps", "5"]) == 0
    whole, parts = capsys.readouterr().out.splitlines()
    assert whole.startswith("2 rows: ")
    for name in ("plan", "frame", "batch", "attention", "model", "logits", "draw", "put", "sample", "result", "commit"):
        assert f"{name} " in parts
