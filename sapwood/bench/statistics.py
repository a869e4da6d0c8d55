"""Figures from what happened: pure functions over steps and streams. Times are seconds, figures say their own unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

Figures = dict[str, float | None]
"""Figures by name; `report.FIGURES` says what each means. None where there was nothing to measure."""


class Step(NamedTuple):
    """One step of an engine: the time since the one before it landed, tokens it yielded, prompt tokens it was fed."""

    seconds: float
    num_yielded: int
    num_fed: int


@dataclass(slots=True)
class Stream:
    """One request over HTTP. Times are of one clock; `times` are those of the chunks that brought tokens.

    `num_output` is what the server counted, or the number of chunks where it does not count.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    ended: float = 0.0
    num_prompt: int = 0
    num_output: int = 0
    num_cached: int = 0
    error: str | None = None
    late: float = 0.0
    """How long after its scheduled time it was sent."""

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.times[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first chunk; None where there was but one token."""
        return (self.times[-1] - self.times[0]) / (self.num_output - 1) if self.num_output > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


SHARES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def spread(name: str, values: Sequence[float], *, factor: float = 1e3) -> Figures:
    """`name`_mean, _p50, _p90 and _p99 of values times `factor` (1e3: seconds to milliseconds)."""
    if not values:
        return dict.fromkeys([f"{name}_mean", *(f"{name}_{key}" for key in SHARES)])
    figures: Figures = {f"{name}_mean": factor * fmean(values)}
    return figures | {f"{name}_{key}": factor * percentile(values, share) for key, share in SHARES.items()}


def median_of(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over repeated runs."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _median([run.get(name) for run in runs]) for name in names}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return percentile(known, 0.5) if known else None


def decode_seconds(steps: Iterable[Step], *, batch: int | None = None) -> list[float]:
    """Times of the steps in which every row only decoded; of those with `batch` rows, if given."""
    return [
        step.seconds for step in steps if not step.num_fed and step.num_yielded and batch in (None, step.num_yielded)
    ]


# -- serving ----------------------------------------------------------------------------------------------------------


def serving_figures(streams: Sequence[Stream], slo: Mapping[str, float] = {}) -> Figures:
    """Rates and latencies of one load. `slo` bounds 'ttft', 'tpot' and 'e2e' in milliseconds.

    The load lasts from the first request sent to the last one's end. Latencies are those of requests that succeeded:
    TTFT to the first chunk with tokens, ITL between chunks, TPOT a token after the first, E2E to the last.
    """
    good = [stream for stream in streams if stream.error is None]
    figures: Figures = {"requests": len(streams), "failed": len(streams) - len(good)}
    seconds = max(s.ended for s in streams) - min(s.sent for s in streams) if streams else 0.0
    figures["seconds"] = seconds
    if seconds > 0:
        num_output, num_prompt = sum(s.num_output for s in good), sum(s.num_prompt for s in good)
        figures["request_s"] = len(good) / seconds
        figures["output_tok_s"] = num_output / seconds
        figures["total_tok_s"] = (num_output + num_prompt) / seconds
        figures["mean_concurrency"] = sum(s.ended - s.sent for s in streams) / seconds
    figures["peak_concurrency"] = peak([(s.sent, s.ended) for s in streams])
    figures["prompt_tokens"] = sum(s.num_prompt for s in good)
    figures["output_tokens"] = sum(s.num_output for s in good)
    figures["cached_tokens"] = sum(s.num_cached for s in good)
    figures |= spread("ttft_ms", [s.ttft for s in good])
    figures |= spread("itl_ms", [gap for s in good for gap in s.gaps])
    figures |= spread("tpot_ms", [tpot for s in good if (tpot := s.tpot) is not None])
    figures |= spread("e2e_ms", [s.e2e for s in good])
    if slo:
        num_met = sum(meets(s, slo) for s in good)
        figures["goodput_s"] = num_met / seconds if seconds > 0 else None
        figures["slo_share"] = num_met / len(streams) if streams else None
    return figures


def meets(stream: Stream, slo: Mapping[str, float]) -> bool:
    """Whether a stream that succeeded kept within every bound, in milliseconds."""
    measured = {"ttft": stream.ttft, "tpot": stream.tpot, "e2e": stream.e2e}
    return all((seconds := measured[name]) is None or 1e3 * seconds <= bound for name, bound in slo.items())


def errors_by_kind(streams: Iterable[Stream]) -> dict[str, int]:
    """How many streams failed of what."""
    counts: dict[str, int] = {}
    for stream in streams:
        if stream.error is not None:
            counts[stream.error] = counts.get(stream.error, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def peak(spans: Iterable[tuple[float, float]]) -> int:
    """Most spans (from, to) that were open at once; one that begins where another ends is not open with it."""
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    most = current = 0
    for _, change in changes:
        current += change
        most = max(most, current)
    return most
