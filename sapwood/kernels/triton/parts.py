"""What becomes of a tile of attention: its result, or a part of it that is joined to the others.

A part is the weighted mean of its values and the log2 of its sum of exponentials, at [item, KV head, row of the tile].
`arrived_JK` (0 before and after) counts the parts of a tile at its first item.

Suffix legend: T tokens, H query heads, K KV heads, D head size, J items, W words of an item, M rows of a tile (queries x
heads), S parts read at once, R rows of a tile as parts hold them, L levels of shared runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton.jit import jit


@jit
def join(
    best_R,
    total_R,
    acc_RD,
    valid_R,
    parts,
    lse,
    first,
    row_R,
    stride,
    count,
    most,
    D: tl.constexpr,
    S: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Absorb `count` parts of each row, `most` at most: `first` and `row_R` are the place of the first, the others lie `stride`
    places apart. Count and first are a row's own, or all rows'.

    Past the first level of caches: other processors wrote them while this one may have read what was there before.
    """
    d_D = tl.arange(0, D_PAD)
    for number in range(0, most, S):
        number_S = number + tl.arange(0, S)
        place_SR = first + number_S[:, None] * stride + row_R[None, :]
        inside_SR = (number_S[:, None] < count) & valid_R[None, :]
        lse_SR = tl.load(lse + place_SR, mask=inside_SR, other=float("-inf"), cache_modifier=".cg")
        inside_SRD = inside_SR[:, :, None] & (d_D[None, None, :] < D)
        place_SRD = place_SR[:, :, None] * D + d_D[None, None, :]
        part_SRD = tl.load(parts + place_SRD, mask=inside_SRD, other=0.0, cache_modifier=".cg")
        better_R = tl.maximum(best_R, tl.max(lse_SR, axis=0))
        pivot_R = tl.where(better_R == float("-inf"), 0.0, better_R)
        share_SR, shrink_R = tl.exp2(lse_SR - pivot_R[None, :]), tl.exp2(best_R - pivot_R)
        total_R = total_R * shrink_R + tl.sum(share_SR, axis=0)
        acc_RD = acc_RD * shrink_R[:, None] + tl.sum(part_SRD * share_SR[:, :, None], axis=0)
        best_R = better_R
    return best_R, total_R, acc_RD


@jit
def runs_of(members_QL, places_M2, query, LEVELS: tl.constexpr):
    """(places, numbers) of the parts of the runs that a query is a member of [L], or that several are [R, L], as `deal_runs`
    says them."""
    l_L = tl.arange(0, LEVELS)
    member = tl.load(members_QL + query * LEVELS + l_L)
    place = tl.load(places_M2 + member * 2, mask=member >= 0, other=0)
    count = tl.load(places_M2 + member * 2 + 1, mask=member >= 0, other=0)
    return place, count


@jit
def join_runs(
    best_R,
    total_R,
    acc_RD,
    valid_R,
    parts,
    lse,
    place,
    count,
    head_R,
    kv_head,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    MEMBERS: tl.constexpr,
    LEVELS: tl.constexpr,
    ONE: tl.constexpr,
    S: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Absorb the parts of the runs that queries are members of; `head_R` is the query head of each row within its G.

    With ONE the rows are one query's, so that nothing but a number is kept of a level.
    """
    picked = tl.arange(0, LEVELS)
    for level in tl.static_range(LEVELS):
        if ONE:
            place_R = tl.sum(tl.where(picked == level, place, 0), axis=0)
            count_R = tl.sum(tl.where(picked == level, count, 0), axis=0)
            most = count_R
        else:
            place_R = tl.sum(tl.where(picked == level, place, 0), axis=1)
            count_R = tl.sum(tl.where(picked == level, count, 0), axis=1)
            most = tl.max(count_R, axis=0)
        first_R = ((place_R // MEMBERS).to(tl.int64) * K + kv_head) * (MEMBERS * G) + place_R % MEMBERS * G
        best_R, total_R, acc_RD = join(
            best_R, total_R, acc_RD, valid_R, parts, lse, first_R, head_R, K * MEMBERS * G, count_R, most, D, S, D_PAD
        )
    return best_R, total_R, acc_RD


@jit
def nothing(M: tl.constexpr, D_PAD: tl.constexpr):
    """What a tile carries along, before it has seen a position."""
    return tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, D_PAD], tl.float32)


@jit
def mean(total_M, acc_MD):
    """A part may hold nothing that some query sees; its weight in the merge is then 0."""
    return acc_MD / tl.where(total_M > 0.0, total_M, 1.0)[:, None]


@jit
def beside_sinks(mean_MD, best_M, total_M, sinks_H, head_M):
    """A whole row's mean less what the sink of its head takes, a score in base e, if there are sinks."""
    if sinks_H is None:
        return mean_MD
    else:
        sink_M = tl.load(sinks_H + head_M) * 1.4426950408889634
        return mean_MD * (total_M / (total_M + tl.exp2(sink_M - best_M)))[:, None]


@jit
def write(out_THD, place_M, valid_M, mean_MD, D: tl.constexpr, D_PAD: tl.constexpr):
    """Rows of results; `place_M` counts token and query head."""
    d_D = tl.arange(0, D_PAD)
    place_MD = place_M[:, None] * D + d_D[None, :]
    tl.store(out_THD + place_MD, mean_MD.to(out_THD.dtype.element_ty), mask=valid_M[:, None] & (d_D[None, :] < D))


@jit
def leave(parts_JKMD, lse_JKM, place_M, valid_M, best_M, total_M, mean_MD, D: tl.constexpr, D_PAD: tl.constexpr):
    """A part of each row; `place_M` counts item, KV head and row of the tile."""
    d_D = tl.arange(0, D_PAD)
    place_MD = place_M[:, None] * D + d_D[None, :]
    tl.store(parts_JKMD + place_MD, mean_MD, mask=valid_M[:, None] & (d_D[None, :] < D))
    tl.store(lse_JKM + place_M, best_M + tl.log2(total_M), mask=valid_M)


@jit
def arrive(arrived_JK, items_JW, item, kv_head, apart, K: tl.constexpr):
    """(whether the tile's last part has arrived, the tile's first item, its number of parts). `apart` is the item's word."""
    tl.debug_barrier()  # the whole part is there before it is counted
    lead = item + tl.minimum(apart, 0)
    parts = tl.load(items_JW + lead * 8 + 6)
    arrived = arrived_JK + lead * K + kv_head
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == parts - 1
    if last:
        tl.store(arrived, 0)  # for the next layer
    return last, lead.to(tl.int64), parts
