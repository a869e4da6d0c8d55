"""`sapwood apply`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.cli import main
from sapwood.cli.remote import Remote

CODE = "a = 1\nb = 2\nc = 3\n"
CLEAR = "# ... existing code ...\nb = 2\nd = f(x)\nc = 3\n"
MERGED = "a = 1\nb = 2\nd = f(x)\nc = 3\n"
UNCLEAR = "# ... existing code ...\nd = f(x)\n# ... existing code ...\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    return path


def apply(file: Path, update: str, *flags: str) -> int:
    snippet = file.with_name("update")
    snippet.write_text(update)
    return main(["apply", str(file), str(snippet), *flags])


def test_by_lines(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply(file, CLEAR) == 0
    assert capsys.readouterr().out == MERGED and file.read_text() == CODE
    assert apply(file, CLEAR, "--write") == 0
    assert capsys.readouterr().out == "" and file.read_text() == MERGED


def test_line_ends_stay(file: Path) -> None:
    file.write_bytes(CODE.replace("\n", "\r\n").encode())
    assert apply(file, CLEAR, "--write") == 0
    assert file.read_bytes() == MERGED.replace("\n", "\r\n").encode()


def test_what_is_unclear_wants_a_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply(file, UNCLEAR, "--write") == 2
    assert "Give --model, or --url" in capsys.readouterr().err and file.read_text() == CODE


@pytest.mark.parametrize(("answer", "code"), [(MERGED, 0), (CODE, 1)])
def test_by_a_server(
    file: Path, answer: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def post(remote: Remote, path: str, body: dict[str, str]) -> dict[str, str]:
        asked.append((remote.url, path, body["method"]))
        return {"code": answer}

    monkeypatch.setattr(Remote, "post", post)
    assert apply(file, UNCLEAR, "--write", "--url", "host:1") == code
    assert asked == [("http://host:1", "/v1/apply", "model")] and file.read_text() == answer
    assert ("missing" in capsys.readouterr().err) == bool(code)


def test_by_a_model(tiny_model: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that knows nothing: what it says is no merged file, and the file stays."""
    flags = (
        "--write",
        "--model",
        str(tiny_model),
        "--max-model-len",
        "1024",
        "--device",
        "cpu",
        "--speculation",
        "auto",
    )
    assert apply(file, UNCLEAR, *flags) == 1
    assert "is left as it is" in capsys.readouterr().err and file.read_text() == CODE


def test_files_that_cannot_be_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", str(file.with_name("none")), str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err
