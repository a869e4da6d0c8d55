"""What requests wait for, at the edges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from sapwood.base.kv import Heads, KVGroup
from sapwood.base.stake import NOW
from sapwood.cache import KVCache
from sapwood.stores.arrivals import Arrivals
from sapwood.stores.blocks import Blocks
from sapwood.stores.names import Names
from sapwood.stores.pace import PrefillRate


def test_nobody_waits_where_all_layers_see_chunks_and_nothing_is_kept() -> None:
    """Behind a border nothing of what was before is seen: there is nothing to bring."""
    kv = KVCache((KVGroup(Heads(1, 1, 4, window=8, chunked=True), 1, 4),), [64])
    pager: Any = SimpleNamespace(blocks=[np.zeros((8, 16), np.uint8)])
    store: Any = SimpleNamespace(lookup=lambda keys: [False] * len(keys), seconds=lambda keys, size: 0.0)
    arrivals = Arrivals(kv, store, pager, Blocks(pager, [0], [8]), Names(b"x"), PrefillRate())
    request: Any = SimpleNamespace(id=1, tokens=np.arange(17, dtype=np.int32), namespace="\0", scored=True, arrival=0)
    assert arrivals.ready(request) is NOW
