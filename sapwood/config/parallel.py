"""How many compute a model."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.base.errors import ConfigError
from sapwood.config import handoff
from sapwood.config.facts import DeviceFacts
from sapwood.config.option import option
from sapwood.config.stores import Directory, StoreConfig, events, places


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Several ranks, which are devices or, on a CPU, processes, and several engines of as many each."""

    tensor_parallel_size: int | None = option(
        None,
        "ranks that compute each layer together, a part of its weights each",
        "--tensor-parallel-size",
        "--tp-size",
        "--tp",
        "-tp",
        metavar="N",
    )
    pipeline_parallel_size: int = option(
        1,
        "stages, a run of the layers each, that hidden states pass through; each has as many ranks as compute a layer",
        "--pipeline-parallel-size",
        "--pp-size",
        "--pp",
        "-pp",
        metavar="N",
    )
    enable_expert_parallel: bool = option(
        False, "each expert is whole on one rank, instead of a part of each on all", "--enable-expert-parallel"
    )
    expert_parallel_size: int = option(
        1,
        "ranks that experts are spread over: 1, or as many as --tensor-parallel-size, which means --enable-expert-parallel",
        "--expert-parallel-size",
        "--ep-size",
        "--ep",
        metavar="N",
    )
    data_parallel_size: int = option(
        1,
        "engines that hold the model each, behind one front that places requests by what their caches hold",
        "--data-parallel-size",
        "--dp-size",
        "--dp",
        "-dp",
        metavar="N",
    )
    data_parallel_rank: int | None = option(
        None,
        "begin only this one of the engines, from 0, with its share of devices or cores, behind a front of its own",
        "--data-parallel-rank",
        metavar="N",
        derived=False,
    )

    @property
    def ranks(self) -> int:
        """Of one engine."""
        return (self.tensor_parallel_size or 1) * self.pipeline_parallel_size

    @property
    def experts_apart(self) -> bool:
        return self.enable_expert_parallel or self.expert_parallel_size > 1

    @property
    def replica(self) -> int:
        """Which of the engines this configuration is of."""
        return self.data_parallel_rank or 0


def check(options: ParallelConfig, kept: StoreConfig) -> None:
    """Raise ConfigError for an engine that there is not, and for what several cannot have together."""
    rank, size = options.data_parallel_rank, options.data_parallel_size
    for flag, number in (("--data-parallel-size", size), ("--pipeline-parallel-size", options.pipeline_parallel_size)):
        if number < 1:
            raise ConfigError(f"{flag} must be at least 1, got {number}.")
    together, spread = options.tensor_parallel_size or 1, options.expert_parallel_size
    if spread not in (1, together):
        raise ConfigError(
            f"--expert-parallel-size must be 1 or as many as --tensor-parallel-size ({together}), got {spread}: experts are spread over the "
            "ranks that compute a layer together."
        )
    if options.experts_apart and together == 1:
        raise ConfigError(
            "--enable-expert-parallel spreads experts over ranks, and there is one: set --tensor-parallel-size."
        )
    if size > 1 and rank is None:
        raise ConfigError(
            "--data-parallel-size: `sapwood serve` and AsyncLLM have several engines, and this is one; leave it out, or say which "
            "one by --data-parallel-rank."
        )
    if size > 1 and any(isinstance(place, Directory) for place in places(kept)):
        raise ConfigError(
            "--kv-store: a directory is written by one engine, and --data-parallel-size asks for several. Take host memory, "
            "which each has for itself, or a server, which all share."
        )
    handoff.check(kept, engines=size, ranks=options.ranks)
    told = events(kept)
    if told is not None and told.replay_endpoint is not None and size > 1:
        ports = [one.rpartition(":")[2] for one in (told.endpoint, told.replay_endpoint)]
        if all(port.isdecimal() for port in ports) and abs(int(ports[0]) - int(ports[1])) < size:
            raise ConfigError(
                f"--kv-events-config: each of {size} engines tells on a port of its own behind the first, so endpoint and "
                f"replay_endpoint must be {size} ports apart, got {ports[0]} and {ports[1]}: take another replay_endpoint, such as "
                f"tcp://*:{int(ports[0]) + 100}."
            )
    if rank is not None and not 0 <= rank < size:
        raise ConfigError(
            f"--data-parallel-rank must be in [0, {size - 1}], as --data-parallel-size is {size}, got {rank}."
        )


def size_rule(*_: object) -> tuple[int, str]:
    """How many ranks where nobody says."""
    return 1, "one device computes all"


def threads_rule(config: object, model: object, device: DeviceFacts) -> tuple[int, str]:
    """How many of the cores that a rank has."""
    most, reason = device.rules.threads
    return min(device.num_cores, most or device.num_cores), reason
