"""How many compute a model."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.config.facts import DeviceFacts
from sapwood.config.option import option


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Several ranks, which are devices or, on a CPU, processes."""

    tensor_parallel_size: int | None = option(
        None,
        "ranks that compute each layer together, a part of its weights each",
        "--tensor-parallel-size",
        "--tp-size",
        "--tp",
        "-tp",
        metavar="N",
    )


def size_rule(*_: object) -> tuple[int, str]:
    """How many ranks where nobody says."""
    return 1, "one device computes all"


def threads_rule(config: object, model: object, device: DeviceFacts) -> tuple[int, str]:
    """How many of the cores that a rank has."""
    most, reason = device.rules.threads
    return min(device.num_cores, most or device.num_cores), reason
