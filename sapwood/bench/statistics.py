"""Figures from what happened: pure functions over steps and streams. Times are seconds, figures say their own unit."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

Figures = dict[str, float | None]
"""Figures by name; `report.FIGURES` says what each means. None where there was nothing to measure."""

SPREAD = ("mean", "p50", "p90", "p99")


class Step(NamedTuple):
    """One step of an engine: the time since the one before it landed, tokens it yielded, prompt tokens it was fed."""

    seconds: float
    num_yielded: int
    num_fed: int


@dataclass(slots=True)
class Stream:
    """One request over HTTP. Times are of one clock; `times` are those of the chunks that brought tokens.

    `text` and `ids` are its answer, as far as the server tells them. `num_output` is what it counted, or the number of
    chunks where it does not count. `late` is how long after its scheduled time it was sent.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    ids: list[int] = field(default_factory=list)
    ended: float = 0.0
    num_prompt: int = 0
    num_output: int = 0
    num_cached: int = 0
    error: str | None = None
    late: float = 0.0

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
        return np.diff(self.times).tolist()


def spread(name: str, values: Sequence[float], *, factor: float = 1e3) -> Figures:
    """`name`_mean, _p50, _p90 and _p99 of values times `factor` (1e3: seconds to milliseconds)."""
    found = [np.mean(values), *np.quantile(values, (0.5, 0.9, 0.99))] if len(values) else [None] * len(SPREAD)
    return {f"{name}_{key}": None if x is None else factor * float(x) for key, x in zip(SPREAD, found, strict=True)}


def median_of(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over repeated runs."""
    known: dict[str, list[float]] = {}
    for name, value in ((name, value) for run in runs for name, value in run.items()):
        known.setdefault(name, []).extend([] if value is None else [value])
    return {name: statistics.median(values) if values else None for name, values in known.items()}


def decode_seconds(steps: Iterable[Step], *, batch: int | None = None) -> list[float]:
    """Times of the steps in which every row only decoded; of those with `batch` rows, if given."""
    return [
        step.seconds for step in steps if not step.num_fed and step.num_yielded and batch in (None, step.num_yielded)
    ]


@contextmanager
def timing(parts: Sequence[tuple[str, Any, str]]) -> Iterator[dict[str, list[float]]]:
    """Have functions note how many seconds they take, under a name; parts are (name, owner, attribute)."""
    found: dict[str, list[float]] = defaultdict(list)

    def timed(note: Callable[[float], None], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                note(perf_counter() - began)

        return call

    with ExitStack() as stack:
        for name, owner, attribute in parts:
            call = timed(found[name].append, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, call))
        yield found


# -- serving ----------------------------------------------------------------------------------------------------------


def serving_figures(streams: Sequence[Stream], slo: Mapping[str, float] = {}) -> Figures:
    """Rates and latencies of one load. `slo` bounds 'ttft', 'tpot' and 'e2e' in milliseconds.

    The load lasts from the first request sent to the last one's end. Latencies are those of requests that succeeded:
    TTFT to the first chunk with tokens, ITL between chunks, TPOT a token after the first, E2E to the last.
    """
    good = [stream for stream in streams if stream.error is None]
    seconds = max(s.ended for s in streams) - min(s.sent for s in streams) if streams else 0.0
    num_prompt, num_output = sum(s.num_prompt for s in good), sum(s.num_output for s in good)
    figures: Figures = {"requests": len(streams), "failed": len(streams) - len(good), "seconds": seconds}
    if seconds > 0:
        figures["request_s"] = len(good) / seconds
        figures["output_tok_s"] = num_output / seconds
        figures["total_tok_s"] = (num_output + num_prompt) / seconds
        figures["mean_concurrency"] = sum(s.ended - s.sent for s in streams) / seconds
    figures["peak_concurrency"] = peak([(s.sent, s.ended) for s in streams])
    figures |= {"prompt_tokens": num_prompt, "output_tokens": num_output}
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
    measured = {name: getattr(stream, name) for name in slo}
    return all(seconds is None or 1e3 * seconds <= slo[name] for name, seconds in measured.items())


def peak(spans: Iterable[tuple[float, float]]) -> int:
    """Most spans (from, to) that were open at once; one that begins where another ends is not open with it."""
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    return max(accumulate(change for _, change in changes), default=0)
