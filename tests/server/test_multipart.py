"""Forms, as clients write them, and what is none."""

from __future__ import annotations

import httpx
import pytest

from sapwood.base.errors import RequestError
from sapwood.server.multipart import Part, parts_of


def form(**fields: object) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", **fields)  # type: ignore[arg-type]
    return request.headers["content-type"], request.read()


@pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"a\r\n--b\r\n\r\nc", bytes(range(256)) * 9])
def test_fields_and_files(content: bytes) -> None:
    given = form(data={"purpose": "batch", "empty": ""}, files={"file": ('ä "b".jsonl', content, "text/plain")})
    found = parts_of(*given)
    assert [part for part in found if part.filename is None] == [
        Part("purpose", None, b"batch"), Part("empty", None, b""),
    ]  # fmt: skip
    (file,) = (part for part in found if part.filename is not None)
    assert file.name == "file" and file.content == content and file.filename


def test_boundaries() -> None:
    body = b'--a b\r\nContent-Disposition: form-data; name="x"\r\n\r\n--a\r\n--a b--\r\nepilogue'
    assert parts_of('multipart/form-data; boundary="a b"', body) == [Part("x", None, b"--a")]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\ny\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n" * 200 + b"--x--"),
    ],
)
def test_what_is_none(kind: str, body: bytes) -> None:
    with pytest.raises(RequestError):
        parts_of(kind, body)
