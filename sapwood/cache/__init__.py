"""The host side of the KV cache: page pools, and the radix tree that owns their pages."""

from sapwood.cache.borders import Borders
from sapwood.cache.explain import Explanation
from sapwood.cache.kv import KVCache
from sapwood.cache.paths import Paths
from sapwood.cache.sketch import Sketch
from sapwood.cache.stake import KVStake
from sapwood.cache.texts import Texts

__all__ = ["Borders", "Explanation", "KVCache", "KVStake", "Paths", "Sketch", "Texts"]
