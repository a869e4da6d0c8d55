"""Adapters: small changes to a model's weights, which requests ask for one by one."""

from __future__ import annotations

import msgspec


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """`id` follows from every byte of its files, and so tells it apart for ever; `path` is the directory where they lie."""

    id: str
    path: str
