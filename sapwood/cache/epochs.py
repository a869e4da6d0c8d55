"""What was computed by other weights than those that a model has now is found by nobody, wherever it is kept."""

from __future__ import annotations

from secrets import token_hex

from sapwood.cache.kv import KVCache


def turn(kv: KVCache) -> None:
    """The weights are others from here on. Nobody may be running.

    Namespaces have another name, which never was and never will be one, so that pages in stores are not found either: not those of
    old weights under new ones, nor those of new weights by a later engine that begins with the old.
    """
    kv.flush()
    kv.tree.roots = {name: root for name, root in kv.tree.roots.items() if root.children}
    kv.epoch = f"\0{token_hex(8)}"
