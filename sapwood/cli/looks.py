"""What `GET /live` tells, and what follows from two looks: rates, shares and quantiles of what happened between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.base.errors import SapwoodError
from sapwood.cli.remote import Remote

_NEEDED = ("time", "model", "running", "waiting", "counters", "seconds", "pages", "lanes", "latency")
_QUANTILES = (50, 95)


def look(remote: Remote) -> dict[str, Any]:
    """One look at a server. Raises UserError where there is none or it refuses, SapwoodError for what is no Sapwood server."""
    told = remote.get("/live?tree=0")
    if not isinstance(told, dict) or any(name not in told for name in _NEEDED):
        raise SapwoodError(f"{remote.url} answers, but not as `sapwood serve` does.")
    return told


@dataclass(frozen=True)
class Figures:
    """What happened between two looks. Rates are per second; a quantile of what did not happen is None.

    Attributes:
        output, computed, cached: Tokens: generated, of prompts that were computed, of prompts that were found in the cache.
        hit_rate: The share of prompt tokens that were cached.
        busy, host: Shares of the time: of waiting for the device, and of planning and taking in.
        first_token, inter_token: Quantiles in seconds, by percent.
    """

    output: float
    computed: float
    cached: float
    hit_rate: float | None
    steps: float
    busy: float
    host: float
    first_token: dict[int, float | None]
    inter_token: dict[int, float | None]


def figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Figures:
    """Of two looks at the same server; one whose engine began anew meanwhile counts from there."""
    seconds = max(after["time"] - before["time"], 1e-3)

    def grown(section: str, name: str) -> float:
        new, old = after[section].get(name, 0), before[section].get(name, 0)
        return float(new - old if new >= old else new)

    computed, cached = grown("counters", "prompt_tokens"), grown("counters", "cached_tokens")
    return Figures(
        output=grown("counters", "output_tokens") / seconds,
        computed=computed / seconds,
        cached=cached / seconds,
        hit_rate=cached / (computed + cached) if computed + cached else None,
        steps=grown("counters", "steps") / seconds,
        busy=grown("seconds", "wait_seconds") / seconds,
        host=grown("seconds", "host_seconds") / seconds,
        first_token=_quantiles(before["latency"]["first_token"], after["latency"]["first_token"]),
        inter_token=_quantiles(before["latency"]["inter_token"], after["latency"]["inter_token"]),
    )


def _quantiles(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[int, float | None]:
    """Of what two looks at cumulative buckets differ in, straight within each bucket; the last has no end and yields its start."""
    old = before["counts"] if before["bounds"] == after["bounds"] else [0] * len(after["counts"])
    counts = [new - count for new, count in zip(after["counts"], old, strict=True)]
    return {percent: _quantile(after["bounds"], counts, percent / 100) for percent in _QUANTILES}


def _quantile(bounds: Sequence[float | None], counts: Sequence[float], share: float) -> float | None:
    if not counts or counts[-1] <= 0:
        return None
    wanted, low, below = share * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if bound is None:
            break
        if count >= wanted:
            return low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


class Looks:
    """Looks at one server, one after the other; `window` seconds back are what quantiles and shares are of."""

    def __init__(self, first: dict[str, Any], *, window: float = 30.0, most: int = 240) -> None:
        self._window = window
        self._looks = deque([first], maxlen=most)
        self.curves: dict[str, deque[float]] = {
            name: deque(maxlen=most) for name in ("output", "prompt", "first_token", "inter_token", "running")
        }

    @property
    def last(self) -> dict[str, Any]:
        return self._looks[-1]

    @property
    def lately(self) -> Figures:
        """What happened within the window."""
        since = self.last["time"] - self._window
        return figures(next(one for one in self._looks if one["time"] >= since), self.last)

    def add(self, told: dict[str, Any]) -> None:
        """One more look; one that tells nothing new, since the server looks again only after a while, is left out."""
        if told["time"] <= self.last["time"]:
            return
        step = figures(self.last, told)
        self._looks.append(told)
        self.curves["output"].append(step.output)
        self.curves["prompt"].append(step.computed + step.cached)
        for name, quantiles in (("first_token", step.first_token), ("inter_token", step.inter_token)):
            curve, median = self.curves[name], quantiles[50]
            curve.append((curve[-1] if curve else 0.0) if median is None else median)
        self.curves["running"].append(told["running"])

    def told(self) -> dict[str, Any]:
        """The last look and what follows from it, for programs."""
        lately, last = self.lately, self.last
        return {
            "time": last["time"],
            "model": last["model"],
            "running": last["running"],
            "waiting": last["waiting"],
            "output_tokens_per_second": round(lately.output, 2),
            "computed_prompt_tokens_per_second": round(lately.computed, 2),
            "cached_prompt_tokens_per_second": round(lately.cached, 2),
            "hit_rate": lately.hit_rate,
            "steps_per_second": round(lately.steps, 2),
            "host_share": round(lately.host, 4),
            "device_wait_share": round(lately.busy, 4),
            "first_token_seconds": {f"p{percent}": value for percent, value in lately.first_token.items()},
            "inter_token_seconds": {f"p{percent}": value for percent, value in lately.inter_token.items()},
            "pages": [dict(zip(("total", "free", "evictable"), group, strict=True)) for group in last["pages"]],
            "lanes": last["lanes"],
        }
