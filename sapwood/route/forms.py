"""One field of a form (multipart/form-data), read and replaced without touching the others, which may be long recordings."""

from __future__ import annotations

import re
from email.message import Message

_FIELD = rb'\r\n--%s[ \t]*\r\n(?:[^\r\n]+\r\n)*?content-disposition:[^\r\n]*;[ \t]*name="?%s"?(?=[;\r])[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n'


def place_of(content_type: str, body: bytes, name: str) -> slice | None:
    """Where the value of a field stands in `body`; None if it has none of that name."""
    said = Message()
    said["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = said.get_param("boundary")
    if not isinstance(boundary, str):
        return None
    limit = boundary.encode("latin-1", "replace")
    whole = body if body.startswith(b"\r\n") else b"\r\n" + body
    head = re.search(_FIELD % (re.escape(limit), re.escape(name.encode())), whole, re.IGNORECASE)
    if head is None or (end := whole.find(b"\r\n--" + limit, head.end())) < 0:
        return None
    shift = len(whole) - len(body)
    return slice(head.end() - shift, end - shift)
