"""A mixer is a part, a module and a kind of KV with its backend: some made up here run as a model, with no edit anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sapwood
from sapwood.arch import declare, parts
from sapwood.arch.groups import KVPlace, kv_groups, kv_places
from sapwood.arch.memory import num_parameters
from sapwood.arch.shard import shard, weight_map
from sapwood.attention.base import Batch
from sapwood.attention.select import BACKENDS, Offer, choose
from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError
from sapwood.base.kv import Heads, KVGroup
from sapwood.base.layout import longest_sequence, split_pages
from sapwood.executor import local
from sapwood.kernels import RmsNorm
from sapwood.nn.make import Site, make
from tests import kv, models
from tests.engine.test_drafts import Said, same, say
from tests.engine.whole import prompts_that_share
from tests.sim.world import World

DECAY = 0.75


@dataclass(frozen=True)
class State:
    """A vector that grows older with every token; a page keeps it as it was behind the last of its positions."""

    size: int

    @property
    def divisible(self) -> bool:
        return False

    @property
    def reach(self) -> int:
        return 2

    def oldest(self, position: int) -> int:
        return max(0, position - 1)

    def bytes_per_page(self, page_size: int, itemsize: int, scale_bytes: int) -> int:
        return self.size * itemsize


@dataclass(frozen=True)
class Scan:
    """out(state), where state = DECAY * state + inp(x)."""

    inp: parts.Linear
    out: parts.Linear

    @property
    def kv(self) -> State:
        return State(self.inp.out)


@dataclass(frozen=True)
class Still:
    """Lets no tokens see each other, and keeps nothing."""

    inp: parts.Linear

    @property
    def kv(self) -> None:
        return None


class States:
    """The backend of groups that keep `State`."""

    name = "states"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.float32 else f"it keeps float32, not {dtype}"

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._index = group, index

    def allocate(self, num_pages: int) -> None:
        self._states = torch.zeros(self._group.num_layers, num_pages, self._group.kind.size)

    def plan(self, batch: Batch) -> None:
        self._rows = list(zip(batch.slots_R, batch.starts_R, batch.counts_R, batch.offsets_R1, strict=False))
        self._table_SP, self._page_size = batch.tables_GSP[self._index], self._group.page_size

    def run(self, layer: int, x_TD: Tensor) -> Tensor:
        """The states behind each token, rows in their order: one may begin with what another has just left."""
        out_TD, pages = torch.zeros_like(x_TD), self._states[layer]
        for slot, start, count, first in self._rows:
            state = pages[self._table_SP[slot, (start - 1) // self._page_size]] if start else torch.zeros(x_TD.shape[1])
            for i in range(int(count)):
                state = out_TD[first + i] = DECAY * state + x_TD[first + i]
                pages[self._table_SP[slot, (start + i) // self._page_size]] = state
        return out_TD

    def copy(self, sources_C: Tensor, targets_C: Tensor) -> None:
        raise AssertionError("the beginning of such a page is of no use")


class ScanModule(nn.Module):
    def __init__(self, part: Scan, site: Site) -> None:
        super().__init__()
        self.inp, self.out = site.make("inp", part.inp), site.make("out", part.out)
        self._backend, self._layer = site.backend, site.number

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm, angles: object) -> tuple[Tensor, Tensor]:
        inner_TD, residual_TE = self.inp.normed(x_TE, residual_TE, norm)
        return self.out(self._backend.run(self._layer, inner_TD)), residual_TE


class StillModule(nn.Module):
    def __init__(self, part: Still, site: Site) -> None:
        super().__init__()
        self.inp = site.make("inp", part.inp)
        assert site.backend is None

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, norm: RmsNorm, angles: object) -> tuple[Tensor, Tensor]:
        return self.inp.normed(x_TE, residual_TE, norm)


make.register(Scan, ScanModule)
make.register(Still, StillModule)
TABLE = (*BACKENDS, Offer("states", State, Ability.HOST, lambda wanted: States.refuse(*wanted[:3]) or States))


def mixed(config: Any, *_: object, **__: object) -> parts.Decoder:
    """A Llama in which every mixer but the last is one of ours."""
    decoder = declare(config)
    block, hidden = decoder.blocks[0], decoder.hidden_size
    scan = Scan(
        parts.Linear(hidden, (parts.Part("scan.in", 48),), "out"),
        parts.Linear(48, (parts.Part("scan.out", hidden),), "in"),
    )
    still = Still(parts.Linear(hidden, (parts.Part("still", hidden),), None))
    return replace(decoder, blocks=tuple(replace(block, mixer=mixer) for mixer in (scan, still, scan, block.mixer)))


def test_groups_are_made_by_kind() -> None:
    decoder = mixed(models.config("llama"))
    heads, states = kv_groups(decoder, 16)
    assert heads.kind == Heads(4, 2, 24) and heads.num_layers == 1
    assert states == KVGroup(State(48), 2, 16) and states.bytes_per_page(4) == 2 * 48 * 4
    places = [next(iter(kept.values()), None) for kept in kv_places(decoder)]
    assert places == [KVPlace(1, 0), None, KVPlace(1, 1), KVPlace(0, 0)]


def test_weights_are_found_and_cut_without_knowing_the_part() -> None:
    decoder = mixed(models.config("llama") | {"vocab_size": 200})
    local = shard(decoder, rank=1, size=2)
    names = {piece.name: piece for piece in weight_map(local)}
    assert (local.blocks[2].mixer.inp.out, local.blocks[2].mixer.out.inp) == (24, 24)
    assert names["model.layers.2.scan.in.weight"].source == (slice(24, 48), slice(0, 64))
    assert names["model.layers.2.scan.out.weight"].source == (slice(0, 64), slice(24, 48))
    assert names["model.layers.1.still.weight"].source == (slice(0, 64), slice(0, 64))
    assert parts.ropes(decoder) == parts.ropes(declare(models.config("llama")))
    plain = replace(decoder, blocks=())
    assert num_parameters(decoder) > num_parameters(plain) + 2 * 2 * 48 * 64 + 64 * 64


def test_a_kind_is_served_by_a_row_of_the_table() -> None:
    cpu, group = torch.device("cpu"), KVGroup(State(8), 1, 16)
    assert choose(group, cpu, torch.float32, backends=TABLE) is States
    with pytest.raises(ConfigError, match=r"states: it keeps float32, not torch\.float16"):
        choose(group, cpu, torch.float16, backends=TABLE)
    with pytest.raises(ConfigError, match=r"reference cannot be used: .*\(auto, states\). Use auto or states"):
        choose(group, cpu, torch.float32, "reference", backends=TABLE)
    with pytest.raises(ConfigError, match="no backend knows layers that keep State"):
        choose(group, cpu, torch.float32)


def test_a_pool_of_states_is_no_larger_than_states_that_run() -> None:
    groups = [kv.group(head_dim=64, page_size=16), KVGroup(State(64), 1, 16)]
    counts = split_pages(
        groups, 2**22, page_bytes=[group.bytes_per_page(4) for group in groups], max_num_seqs=4, step_tokens=64
    )
    assert counts[1] < 64 < counts[0]
    assert longest_sequence(groups, counts, step_tokens=64) == (counts[0] - 1) * 16


@pytest.mark.parametrize("seed", range(3))
def test_the_cache_keeps_what_a_kind_needs(seed: int) -> None:
    """The fake device checks that the page before each span is the one that the sequence has left there."""
    random = np.random.default_rng(seed)
    world = World(kinds=(Heads(1, 1, 1), State(1)), num_pages=(60, 24), max_num_seqs=4, max_num_batched_tokens=24)
    stem = random.integers(0, 40, 40).tolist()
    for _ in range(16):
        world.add(stem[: random.integers(1, 40)] + random.integers(0, 40, random.integers(1, 8)).tolist(), 12)
        for _ in range(random.integers(0, 6)):
            world.step()
    world.run()
    world.check_outputs()
    world.check_rest()
    assert world.kv.num_copied == 0 and sum(world.cached.values()) > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("llama"))


Requests = Sequence[tuple[list[int], sapwood.SamplingParams]]


def test_a_model_of_them_says_the_same_alone_and_in_a_crowd(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, behind prefixes that others have computed, and after preemption, as at once and alone."""
    monkeypatch.setattr("sapwood.engine.declared.declare", mixed)
    monkeypatch.setattr(local, "BACKENDS", TABLE)
    options = {"load_format": "dummy", "cpu_kernels": "off", "kv_cache_dtype": "float32", "page_size": 8}
    params = sapwood.SamplingParams(max_tokens=16, temperature=0)
    requests = [(prompt, params) for prompt in prompts_that_share(8)]
    alone: Said = [say(model, [request], **options)[0][0] for request in requests]
    assert len({tuple(tokens) for tokens, *_ in alone}) > 4, "the model says more than one thing"
    crowd, counters = say(model, requests, **options, max_total_tokens=280, max_num_batched_tokens=24, max_num_seqs=4)
    same(crowd, alone)
    assert counters["cached_tokens"] > 0 and counters.get("copied_pages", 0) == 0
