"""`sapwood cache`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sapwood.cli import main
from sapwood.stores import DiskShelf


def test_list_export_import_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf = DiskShelf(tmp_path / "kv", 1 << 20, origin=b"\xab" * 16, about="a small model")
    shelf.put(b"key", np.zeros(5000, np.uint8))
    shelf.close()
    kv, packed, other = (str(tmp_path / name) for name in ("kv", "packed", "other"))

    def told(*words: str) -> str:
        assert main(["cache", *words]) == 0
        return capsys.readouterr().out

    assert "abababababab" in (listed := told("ls", kv)) and "a small model" in listed
    assert told("export", kv, packed) == f"1 pages in {packed}\n"
    assert told("export", "--only", "00", kv, packed + "2").startswith("0 pages")
    assert told("import", packed, other) == f"1 pages added to {other}\n"
    assert told("clear", kv).endswith("freed\n") and "a small model" not in told("ls", kv)
    assert "a small model" in told("ls", other)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls", str(tmp_path / "nowhere")]) == 2
    assert "is no directory" in capsys.readouterr().err
