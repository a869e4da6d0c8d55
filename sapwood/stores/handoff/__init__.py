"""Prompts that one engine computes and another goes on with: a prefill elsewhere is a prefix that arrives.

engine that computes                              engine that goes on
plan → landed → OfferStake → Book's blocks        FetchStake: where is it? → PeerStore → Arrivals → the tree
                             Listener  ←── find, hold, read, let go ──── Peer
"""

from sapwood.stores.handoff.book import Book
from sapwood.stores.handoff.desk import Origin, desks
from sapwood.stores.handoff.fetches import FetchStake
from sapwood.stores.handoff.listener import Listener
from sapwood.stores.handoff.offers import OfferStake
from sapwood.stores.handoff.peers import PeerStore, connected
from sapwood.stores.handoff.shared import Arena, SharedTransfer
from sapwood.stores.handoff.sockets import SocketTransfer
from sapwood.stores.handoff.transfer import Reader, Transfer, TransferError

__all__ = [
    "Arena",
    "Book",
    "FetchStake",
    "Listener",
    "OfferStake",
    "Origin",
    "PeerStore",
    "Reader",
    "SharedTransfer",
    "SocketTransfer",
    "Transfer",
    "TransferError",
    "connected",
    "desks",
]
