"""Engines that several of these tests have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores.sides import Side, side
from tests.tiny import write_bytes_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, which grammars need, and weights that are made up."""
    path = tmp_path_factory.mktemp("llama")
    write_bytes_model(path)
    return path


@pytest.fixture(scope="module")
def pair(llama: Path) -> Iterator[tuple[Side, Side, Side]]:
    """One that computes, one that goes on, and one that does all alone."""
    with side(llama, "prefill") as ahead, side(llama, "decode") as behind, side(llama, None) as alone:
        yield ahead, behind, alone
