"""Forms with files: multipart/form-data, read as a whole."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple

from sapwood.base.errors import RequestError

_MOST_PARTS = 100


class Part(NamedTuple):
    """A field of a form; `filename` is None unless it is a file."""

    name: str
    filename: str | None
    content: bytes


def parts_of(content_type: str, body: bytes) -> list[Part]:
    """The fields of a form in their order. Raises RequestError for what is none."""
    boundary = _parameters(content_type, "content-type").get_param("boundary", header="content-type")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data" or not isinstance(boundary, str):
        raise RequestError("The body must be a form: multipart/form-data with a boundary.", status=415)
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MOST_PARTS + 1)
    if len(pieces) < 2 or len(pieces) > _MOST_PARTS + 1 or not pieces[-1].startswith(b"--"):
        raise RequestError(f"The form is cut off, is not as its boundary says, or has more than {_MOST_PARTS} fields.")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, found, content = piece.partition(b"\r\n\r\n")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            said = _parameters(value.strip(), "content-disposition")
            field = said.get_param("name", header="content-disposition")
            filename = said.get_filename()
            if found and isinstance(field, str):
                return Part(field, filename, content)
    raise RequestError("The form has a field without a name.")


def _parameters(value: str, header: str) -> Message:
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    return message
