"""docs/models.md says what the families say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "models.py"


def test_the_page_of_models_is_made_from_the_families() -> None:
    if not SCRIPT.exists():
        pytest.skip("these are not the sources")
    made = runpy.run_path(str(SCRIPT))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run python scripts/models.py"
