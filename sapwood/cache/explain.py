"""Why a prompt was, or was not, found in the cache: where it first differs from what is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from sapwood.base.request import namespace_of
from sapwood.cache.kv import KVCache
from sapwood.cache.tree import Node

SHOWN = 16  # tokens of what the tree has instead
MOST_COMPARED = 256  # nodes at the place where it differs, newest first


class Explanation:
    """Answers for the prompts of `kv`'s requests; nothing is touched."""

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv

    def __call__(self, *, tokens: list[int], salt: str, adapter: str = "", seen: str = "") -> dict[str, Any]:
        """`cached`: how many tokens of a prompt would not have to be computed now, at least. `differs`: the place of the first that
        the tree does not have behind those before it, the prompt's length where there is none. `instead`: tokens that
        it has from there on, the closest of what others have had; [] where nothing is, and none where media stand. `tokens` are keys
        where media stand, and `seen` is what media add that all tokens see.
        """
        tree, size = self._kv.tree, self._kv.page_size
        keys = np.array(tokens, np.int32).tobytes()
        root = tree.roots.get(seen + namespace_of(adapter, salt)) if self._kv.reuse else None
        if root is None:
            return {"cached": 0, "differs": 0, "instead": []}
        usable = tree.match(root, keys, (len(tokens) - 1) // size)
        node, depth = root, 0
        while child := node.children.get(keys[depth * tree.page_bytes : (depth + 1) * tree.page_bytes]):
            node, depth = child, depth + 1
            if depth * size >= len(tokens):
                break
        shared, instead = _closest(node, tokens[depth * size : (depth + 1) * size])
        return {
            "cached": len(usable) * size,
            "differs": min(depth * size + shared, len(tokens)),
            "instead": [one for one in instead if one >= 0],
        }


def _closest(node: Node, wanted: list[int]) -> tuple[int, list[int]]:
    """How many of some tokens the best of a node's children begins with, and what it has instead of the next."""
    best: tuple[int, list[int]] = (0, [])
    for key in list(node.children)[-MOST_COMPARED:]:
        there = np.frombuffer(key, np.int32).tolist()
        same = next((at for at, (one, other) in enumerate(zip(there, wanted, strict=False)) if one != other), None)
        shared = min(len(there), len(wanted)) if same is None else same
        if shared >= best[0]:
            best = shared, there[shared : shared + SHOWN]
    return best
