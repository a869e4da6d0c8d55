"""One field of a form (multipart/form-data), read and replaced without touching the others, which may be long recordings."""

from __future__ import annotations

import re
from email.message import Message

_NAMED = rb'^content-disposition:[^\r\n]*;[ \t]*name="?%s"?(?=[;\r])'
_MOST_PARTS = 64  # that are looked at
_LONGEST_HEAD = 8 << 10  # bytes before a field's value


def place_of(content_type: str, body: bytes, name: str) -> slice | None:
    """Where the value of a field stands in `body`; None if it has none of that name. What it costs grows with the body, whatever is in it."""
    said = Message()
    said["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = said.get_param("boundary")
    if not isinstance(boundary, str):
        return None
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    named = re.compile(_NAMED % re.escape(name.encode()), re.IGNORECASE | re.MULTILINE)
    begin = 0 if body.startswith(mark[2:]) else body.find(mark) + 2
    for _ in range(_MOST_PARTS if begin != 1 else 0):
        if (end := body.find(mark, begin + len(mark) - 2)) < 0:
            return None
        head = body.find(b"\r\n\r\n", begin, min(end, begin + _LONGEST_HEAD))
        if head >= 0 and head + 4 <= end and named.search(body[begin : head + 2]):
            return slice(head + 4, end)
        begin = end + 2
    return None
