"""What pages are called wherever they go: hashes of a chain, so that a name says all that came before."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from sapwood.cache.tree import Node
from sapwood.stores.base import Key

_BYTES = 16


def digest(*parts: bytes) -> bytes:
    """A name of parts, of which none can be taken for another one's end."""
    made = blake2b(digest_size=_BYTES)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()


class Names:
    """Names of the pages of one model, whose `fingerprint` changes with all that keys and values depend on."""

    def __init__(self, fingerprint: bytes) -> None:
        self._fingerprint = fingerprint

    def root(self, namespace: bytes) -> bytes:
        """What the names of a namespace's first pages are made from."""
        return digest(self._fingerprint, namespace)

    def of(self, node: Node) -> bytes:
        """A node's name; kept there, with those of all nodes above it."""
        unnamed = []
        while node.name is None and node.parent is not None:
            unnamed.append(node)
            node = node.parent
        name = node.name = node.name or self.root(node.key)
        for below in reversed(unnamed):
            name = below.name = digest(name, below.key)
        return name

    def along(self, namespace: bytes, tokens: bytes, page_bytes: int) -> Iterator[bytes]:
        """The names of the full pages of a text: int32 tokens as bytes."""
        name = self.root(namespace)
        for start in range(0, len(tokens) - page_bytes + 1, page_bytes):
            name = digest(name, tokens[start : start + page_bytes])
            yield name


def key(name: bytes, group: int) -> Key:
    """Of one KV group's page."""
    return name + bytes((group,))
