"""Where KV outlives the device: stores of pages, and the stake by which they join the engine."""

from sapwood.stores.base import Done, Key, KVStore, Shelf
from sapwood.stores.disk import DiskShelf, PackedShelf
from sapwood.stores.host import HostShelf
from sapwood.stores.names import Names
from sapwood.stores.stake import StoreStake
from sapwood.stores.threaded import ThreadedStore
from sapwood.stores.tiers import Tiers

__all__ = [
    "DiskShelf",
    "Done",
    "HostShelf",
    "KVStore",
    "Key",
    "Names",
    "PackedShelf",
    "Shelf",
    "StoreStake",
    "ThreadedStore",
    "Tiers",
]
