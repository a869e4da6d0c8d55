"""Checking the books of a radix tree against what running sequences really have, and mending them.

What a node counts (leases, shelters, users, windows) follows from the holds of those who run; which pages are free follows
from which are used. An exception between two entries of the books would otherwise lose pages for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sapwood.cache.hold import Hold
from sapwood.cache.tree import ABSENT, Node, RadixTree


def audit(tree: RadixTree, holds: Sequence[Hold]) -> int:
    """Mend the tree's counts and its pools; return how many entries were wrong. Nothing may be pinned for a copy."""
    wrong = _counts(tree, holds) + tree.recount()
    for g, pool in enumerate(tree.pools):
        used = [node.pages[g] for node in tree.nodes() if node.pages[g] != ABSENT]
        used += [own[g] for hold in holds for own in hold.own if own[g] != ABSENT]
        wrong += pool.reset_free(used)
    return wrong


def _counts(tree: RadixTree, holds: Sequence[Hold]) -> int:
    """Make what each node counts right."""
    leases: Counter[Node] = Counter(hold.deepest for hold in holds)
    users: Counter[Node] = Counter(node for hold in holds for node in hold.nodes)
    windows = {g: Counter(node for hold in holds for node in hold.nodes[hold.low[g] :]) for g in tree.windowed}
    wrong = 0
    everything = [*tree.roots.values(), *tree.nodes()]
    for node in everything:
        right = [windows[g][node] if g in windows else 0 for g in range(len(node.holds))]
        found = node.leases, node.users, node.holds
        if found != (leases[node], users[node], right):
            wrong += 1
            node.leases, node.users, node.holds = leases[node], users[node], right
    for node in _from_leaves(everything):
        shelters = (node.leases > 0) + sum(child.shelters > 0 for child in node.children.values())
        wrong += node.shelters != shelters
        node.shelters = shelters
    return wrong


def _from_leaves(nodes: Sequence[Node]) -> list[Node]:
    """Children before their parents."""
    order = [node for node in nodes if node.parent is None]
    for node in order:  # grows while it is walked through
        order.extend(node.children.values())
    return order[::-1]
