"""Telling models apart by their contents, wherever their files lie."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

from sapwood.hub.files import ModelFiles, weight_files

_WHOLE = 512 << 20  # bytes of a file that is read whole; of larger ones parts
_PARTS, _PART = 4096, 4096  # how many, evenly spaced, and bytes of each
_CHUNK = 1 << 20


def fingerprint(files: ModelFiles, *, weights: bool = True) -> bytes:
    """Of a model's config and weights; without `weights` of the config alone. Of large files the beginning is read and thousands
    of places, so that another training, merging or rounding shows."""
    made = blake2b(digest_size=16)
    made.update(json.dumps(files.config, sort_keys=True, default=str).encode())
    if weights:
        for path in [files.path] if files.kind == "gguf" else weight_files(files.path):
            _add(made, path)
    return made.digest()


def _add(made: blake2b, path: Path) -> None:
    size = path.stat().st_size
    made.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= _WHOLE:
            while chunk := file.read(_CHUNK):
                made.update(chunk)
            return
        made.update(file.read(_CHUNK))
        for part in range(1, _PARTS + 1):
            made.update(os.pread(file.fileno(), _PART, part * (size - _PART) // _PARTS))
