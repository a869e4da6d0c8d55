"""What several engines say, as one would say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from sapwood.base.histogram import Histogram
from sapwood.base.wire import Facts, Stats


def facts_of(all_: Sequence[Facts]) -> Facts:
    """Of all engines together: as many requests and pages as they hold, else what the first says."""
    pages = [sum(group) for group in zip_longest(*(facts.num_pages for facts in all_), fillvalue=0)]
    return msgspec.structs.replace(
        all_[0],
        max_num_seqs=sum(facts.max_num_seqs for facts in all_),
        num_pages=pages,
        decisions=[*all_[0].decisions, f"data_parallel_size = {len(all_)} (as asked: engines with all of this each)"],
    )


def stats_of(live: Sequence[Stats], past: Sequence[Stats] = ()) -> Stats:
    """Added up: gauges of `live` engines, and what these and engines of the `past` have counted. Paused is what is paused everywhere."""
    all_ = [*live, *past]
    return Stats(
        running=sum(one.running for one in live),
        waiting=sum(one.waiting for one in live),
        counters=added([one.counters for one in all_]),
        seconds=added([one.seconds for one in all_]),
        pages=added([one.pages for one in live]) or [],
        histograms=_histograms([one.histograms for one in all_]),
        paused=bool(live) and all(one.paused for one in live),
    )


def reply_of(what: str, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a question or command that all were given."""
    failed = next((body for body in bodies if "error" in body), None)
    if failed is not None:
        return failed
    match what:
        case "explain":  # it goes where most of it is
            return max(bodies, key=lambda body: int(body["cached"]))
        case "tree":  # which is told by pieces: that of the first
            return bodies[0]
        case "update_weights":  # all at once
            return bodies[0] | {"seconds": max(body["seconds"] for body in bodies)}
        case "live":
            told = [_stats_in(body) for body in bodies]
            lanes = [lane | {"replica": place} for place, body in enumerate(bodies) for lane in body["lanes"]]
            return {"lanes": lanes} | msgspec.structs.asdict(stats_of(told))
        case _:
            found: dict[str, Any] = added(bodies)
            return found


def _stats_in(body: Mapping[str, Any]) -> Stats:
    fields = {name: body[name] for name in Stats.__struct_fields__ if name in body}
    fields["histograms"] = msgspec.convert(body.get("histograms", {}), dict[str, dict[str, Histogram]])
    return Stats(**fields)


def added(values: Sequence[Any]) -> Any:
    """Numbers are added up, within lists and by name within maps too; of truths all must be, and of all else the first counts."""
    first = values[0] if values else {}
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int | float):
        return sum(values)
    if isinstance(first, list):
        return [added([one for one in items if one is not None]) for items in zip_longest(*values)]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: added([value[name] for value in values if name in value]) for name in names}
    return first


def _histograms(all_: Sequence[Mapping[str, Mapping[str, Histogram]]]) -> dict[str, dict[str, Histogram]]:
    found: dict[str, dict[str, Histogram]] = {}
    for one in all_:
        for name, kinds in one.items():
            mine = found.setdefault(name, {})
            for kind, seen in kinds.items():
                if (known := mine.get(kind)) is None:
                    mine[kind] = seen.copy()
                else:
                    known.counts = [count + more for count, more in zip(known.counts, seen.counts, strict=True)]
                    known.total += seen.total
    return found
