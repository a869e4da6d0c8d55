"""The composition root needs an Executor and nothing more: others than the one of this process, made up here, will do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.arch.parts import Decoder
from sapwood.base.errors import ConfigError
from sapwood.base.packing import pack_late, pack_outcome, pack_plan, unpack_late, unpack_outcome, unpack_plan
from sapwood.base.plan import Bits, Ints, LatePart, Longs, Outcome, Plan
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Facts, Submit
from sapwood.catalogue import Catalogue
from sapwood.config.flags import from_options
from sapwood.config.options import Config
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from sapwood.executor.base import Executor, Measured
from sapwood.executor.fake import FakeExecutor
from sapwood.executor.local import LocalExecutor
from sapwood.executor.null import NullExecutor
from sapwood.hub.files import ModelFiles
from tests import models
from tests.engine.whole import drain, greedy, prompts_that_share


class Forward:
    """Starts as another does; all that goes on then travels as bytes."""

    def __init__(self, there: Executor) -> None:
        self.there = there
        self.num_bytes = 0

    def start(self, config: Config, decoder: Decoder, files: ModelFiles, **options: Any) -> Measured:
        return self.there.start(config, decoder, files, **options)

    def allocate(self, num_pages: Sequence[int]) -> None:
        self.there.allocate(num_pages)

    def capture(self) -> None:
        self.there.capture()

    def forward(self, plan: Plan) -> Any:
        message = pack_plan(plan)
        self.num_bytes += len(message)
        return self.there.forward(unpack_plan(message))

    def proposed(self, work: Any) -> Ints:
        return self.there.proposed(work)

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return self.there.allocate_masks(num_rows, width)

    def sample(self, work: Any, late: tuple[LatePart, ...] = ()) -> None:
        self.there.sample(work, unpack_late(pack_late(late)))

    def result(self, work: Any) -> Outcome:
        return unpack_outcome(pack_outcome(self.there.result(work)))

    def tidy(self) -> bool:
        return self.there.tidy()

    def expert_tokens(self) -> Longs:
        return self.there.expert_tokens()

    def shutdown(self) -> None:
        self.there.shutdown()


class Ranks:
    """Several devices that do the same; what holds of one of them only holds of none."""

    def __init__(self, *ranks: Executor) -> None:
        self.ranks = ranks

    def start(self, config: Config, decoder: Decoder, files: ModelFiles, **options: Any) -> Measured:
        found = [rank.start(config, decoder, files, **options) for rank in self.ranks]
        assert len({one.groups for one in found}) == 1
        least = min(found, key=lambda one: one.kv_bytes)
        return Measured(groups=least.groups, kv_bytes=least.kv_bytes, backends=least.backends, seconds={})

    def allocate(self, num_pages: Sequence[int]) -> None:
        for rank in self.ranks:
            rank.allocate(num_pages)

    def capture(self) -> None:
        for rank in self.ranks:
            rank.capture()

    def forward(self, plan: Plan) -> list[Any]:
        return [rank.forward(plan) for rank in self.ranks]

    def proposed(self, work: list[Any]) -> Ints:
        return self.ranks[0].proposed(work[0])

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        return self.ranks[0].allocate_masks(num_rows, width)

    def sample(self, work: list[Any], late: tuple[LatePart, ...] = ()) -> None:
        for rank, one in zip(self.ranks, work, strict=True):
            rank.sample(one, late)

    def result(self, work: list[Any]) -> Outcome:
        first, *others = (rank.result(one) for rank, one in zip(self.ranks, work, strict=True))
        assert all(np.array_equal(first.tokens_N, other.tokens_N) for other in others)
        return first

    def tidy(self) -> bool:
        more = [rank.tidy() for rank in self.ranks]
        return any(more)

    def expert_tokens(self) -> Longs:
        return self.ranks[0].expert_tokens()

    def shutdown(self) -> None:
        for rank in self.ranks:
            rank.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("gemma3", tmp_path_factory.mktemp("gemma3"))


def launched(model: Path, executor: Executor, **options: Any) -> tuple[Engine, Facts]:
    base = {"model": str(model), "dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 32}
    engine, facts, _ = launch(from_options(base | options), executor=executor)
    return engine, facts


def say(engine: Engine) -> list[list[int]]:
    """What requests of one beginning say."""
    for id in range(6):
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        assert engine.submit(Submit(id, [*range(9), id], params)) is None
    return drain(engine, 6)


@pytest.mark.parametrize("depth", [0, 1])
def test_plans_that_travel_as_bytes(model: Path, depth: int) -> None:
    prompts = prompts_that_share(8)
    wanted, _ = greedy(model, prompts)
    far = Forward(LocalExecutor(Catalogue()))
    found, _ = greedy(model, prompts, executor=far, depth=depth)
    assert found == wanted and far.num_bytes > 1000


def test_of_several_devices_the_least_counts(model: Path) -> None:
    small, large = FakeExecutor(kv_bytes=1 << 20), FakeExecutor(kv_bytes=2 << 20)
    alone, facts = launched(model, FakeExecutor(kv_bytes=1 << 20))
    engine, of_both = launched(model, Ranks(large, small))
    assert (of_both.num_pages, of_both.max_model_len) == (facts.num_pages, facts.max_model_len)
    assert of_both.attention_backend == "fake" and not of_both.seconds_to_ready.keys() & {"weights", "measure"}
    assert [len(cells) for cells in large.cells] == [len(cells) for cells in small.cells]
    assert [len(cells) for cells in small.cells] == [pages * facts.page_size for pages in facts.num_pages]
    assert say(engine) == say(alone)
    assert small.num_steps == large.num_steps > 0


def test_a_device_that_turns_out_smaller_is_said_to_be(model: Path) -> None:
    _, facts = launched(model, FakeExecutor(kv_bytes=1 << 17))
    assert facts.max_model_len < 256
    assert f"max_model_len = {facts.max_model_len} (what the KV cache holds)" in facts.decisions
    with pytest.raises(ConfigError, match=r"--max-model-len \(256\) does not fit"):
        launched(model, FakeExecutor(kv_bytes=1 << 17), max_model_len=256)


def test_a_device_that_computes_nothing(model: Path) -> None:
    engine, facts = launched(model, NullExecutor(token=7))
    assert say(engine) == [[7] * 12] * 6
    assert facts.attention_backend == "null" and engine.executor.allocate_masks(3).shape == (
        3,
        -(-facts.vocab_size // 32),
    )
