"""What is counted of rules, signals and kept answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class RuleMetrics:
    """docs/semantic.md lists them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ruled = Counter(
            "sapwood_route_ruled",
            "Requests for a name that rules resolve, by the rule that won and the model that it chose (none: refused)",
            ("name", "rule", "model"),
            registry=registry,
        )
        self.unknown = Counter(
            "sapwood_route_signal_unknown",
            "Signals that nobody could tell: who makes vectors or labels did not answer",
            ("signal",),
            registry=registry,
        )
        self.seconds = Histogram(
            "sapwood_route_rules_seconds", "What rules took of a request", buckets=_SECONDS, registry=registry
        )
        self.answers = Counter(
            "sapwood_route_answers",
            "Requests that a kept answer might do for: exact, near, none, or unknown where no vector could be had",
            ("found",),
            registry=registry,
        )
