"""KV groups of keys and values, from whatever facts matter to a test."""

from __future__ import annotations

from sapwood.base.kv import Heads, KVGroup


def group(
    *,
    num_layers: int = 1,
    num_heads: int = 1,
    num_kv_heads: int = 1,
    head_dim: int = 1,
    window: int | None = None,
    page_size: int = 4,
    cap: float | None = None,
    slopes: tuple[float, ...] | None = None,
    chunked: bool = False,
    sinks: bool = False,
) -> KVGroup:
    heads = Heads(num_heads, num_kv_heads, head_dim, window, cap, slopes, chunked, sinks)
    return KVGroup(heads, num_layers, page_size)
