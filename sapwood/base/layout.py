"""How many pages each KV group gets of the memory there is."""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.base.errors import ConfigError
from sapwood.base.kv import KVGroup


def split_pages(
    groups: Sequence[KVGroup],
    num_bytes: int,
    *,
    page_bytes: Sequence[int],
    max_num_seqs: int,
    step_tokens: int,
    max_tokens: int | None = None,
    longest: int = 0,
) -> list[int]:
    """Pages per group (the reserved page 0 included) such that all groups together take at most `num_bytes`; a page of each
    group takes `page_bytes`.

    All groups hold the same number of tokens, except that a windowed group stops growing at what `max_num_seqs` windows
    and two steps of `step_tokens` tokens can use, twice over so that windows of cached prefixes survive a while; the
    others take what it leaves. `max_tokens` caps every group. Windowed groups give way so that the others hold one
    sequence of `longest` tokens, as long as its own windows fit. What is not divisible does not grow with tokens: it takes
    what running sequences need, twice over, but beside others no more than half of the memory.
    """
    caps = [_useful_pages(group, max_num_seqs, step_tokens, max_tokens) for group in groups]
    counts = _split(groups, page_bytes, caps, num_bytes)
    if longest_sequence(groups, counts, step_tokens=step_tokens) < longest:
        wanted = [pages_for(group, 1, longest, step_tokens=step_tokens) for group in groups]
        spare = num_bytes - sum(count * cost for count, cost in zip(wanted, page_bytes, strict=True))
        if spare >= 0 and all(cap is None or count <= cap for count, cap in zip(wanted, caps, strict=True)):
            left = [None if cap is None else cap - count for count, cap in zip(wanted, caps, strict=True)]
            counts = [count + more for count, more in zip(wanted, _split(groups, page_bytes, left, spare), strict=True)]
    if min(counts) < 2:
        need = 2 * sum(page_bytes)
        raise ConfigError(
            f"too little memory for the KV cache: {num_bytes / 2**20:.1f} MiB are left and even one page a group needs "
            f"{need / 2**20:.1f} MiB. Raise --kv-cache-memory or --mem-fraction-static, or free memory."
        )
    return counts


def _split(groups: Sequence[KVGroup], costs: Sequence[int], caps: Sequence[int | None], num_bytes: int) -> list[int]:
    """Pages of each group for `num_bytes`: of those that are not divisible first, since they do not grow with tokens."""
    counts = [0] * len(groups)
    for divisible in (False, True):
        mine = [g for g, group in enumerate(groups) if group.kind.divisible == divisible]
        part = num_bytes if divisible or len(mine) == len(groups) else num_bytes // 2
        for g, count in zip(mine, _shares([costs[g] for g in mine], [caps[g] for g in mine], part), strict=True):
            counts[g] = count
            num_bytes -= count * costs[g]
    return counts


def _shares(costs: Sequence[int], caps: Sequence[int | None], num_bytes: int) -> list[int]:
    """Pages of each group for `num_bytes`: the same number of all, but for those that reach their cap."""
    counts = [0] * len(costs)
    growing = list(range(len(costs)))
    left = num_bytes
    while growing:
        # Pages of equal token counts for all that still grow; those that reach their cap free the rest for the others.
        share = left // sum(costs[g] for g in growing)
        full = [g for g in growing if (cap := caps[g]) is not None and cap <= share]
        for g in full or growing:
            cap = caps[g]
            counts[g] = cap if full and cap is not None else share
            left -= counts[g] * costs[g]
        growing = [g for g in growing if g not in full] if full else []
    return counts


def pages_for(group: KVGroup, num_seqs: int, num_tokens: int, *, step_tokens: int) -> int:
    """Pages with which a group holds sequences of a length side by side, the reserved page included."""
    each = -(-num_tokens // group.page_size)
    if group.window is None:
        return num_seqs * each + 1
    window, step = _held(group, group.window, step_tokens)
    return min(num_seqs * each, num_seqs * window + step) + 1


def _held(group: KVGroup, window: int, step_tokens: int) -> tuple[int, int]:
    """Pages that a sequence needs for its window, and those that a step writes beyond that."""
    if group.kind.divisible:
        return -(-window // group.page_size) + 1, -(-step_tokens // group.page_size) + 1
    return -(-(window + group.rewind) // group.page_size) + 1, 1


def _useful_pages(group: KVGroup, max_num_seqs: int, step_tokens: int, max_tokens: int | None) -> int | None:
    size = group.page_size
    cap = None if max_tokens is None else max(2, -(-max_tokens // size) + 1)
    if group.window is None:
        return cap
    window, step = _held(group, group.window, step_tokens)
    useful = 2 * (max_num_seqs * (window + 1) + 2 * step) + 1
    return useful if cap is None else min(cap, useful)


def longest_sequence(groups: Sequence[KVGroup], counts: Sequence[int], *, step_tokens: int) -> int:
    """Most tokens that one sequence can hold when it has the whole cache to itself."""
    longest = 2**31 - 1
    for group, count in zip(groups, counts, strict=True):
        tokens = (count - 1) * group.page_size
        # A windowed group needs its window, the step that is being written and the page borders of both.
        if group.window is None or count - 1 < sum(_held(group, group.window, step_tokens)):
            longest = min(longest, tokens)
    return longest
