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
    assert told("import", packed, other) == f"1 pages added to {other}\n"
    assert told("import", packed, other) == f"0 pages added to {other}\n"  # they are there
    assert told("clear", kv).endswith("freed\n") and "a small model" not in told("ls", kv)
    assert "a small model" in told("ls", other)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls", str(tmp_path / "nowhere")]) == 2
    assert "is no directory" in capsys.readouterr().err
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    assert main(["cache", "import", str(tmp_path / "junk"), str(tmp_path / "new")]) == 2
    assert "has no pages: name a file that `sapwood cache export` wrote" in capsys.readouterr().err
    assert main(["cache", "export", str(tmp_path / "nowhere"), str(tmp_path / "file")]) == 2
    assert main(["cache", "export", "--only", "00", str(tmp_path / "new"), str(tmp_path / "file")]) == 2
    assert "has no pages of a model 00" in capsys.readouterr().err
    assert not list(tmp_path.glob("file*"))


def test_what_is_anothers_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    DiskShelf(tmp_path / "kv", 1 << 20, origin=b"\xab" * 16, about="a small model").put(b"key", np.zeros(50, np.uint8))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "pages-00000001.kv")

    monkeypatch.setattr("sapwood.stores.folder.Segment", denied)
    assert main(["cache", "ls", str(tmp_path / "kv")]) == 2
    assert "pages-00000001.kv: Permission denied" in capsys.readouterr().err
