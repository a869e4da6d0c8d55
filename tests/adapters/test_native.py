"""Adapters in the CPU's own stack: logits are PEFT's, and a row's bits do not depend on who else has an adapter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.arch import declare
from sapwood.arch.parts import walk
from sapwood.base.adapter import Adapter
from sapwood.base.plan import Adapters, Rows
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.hub.adapters import adapter_id
from sapwood.hub.files import open_files
from sapwood.nn.adapted import Bank
from sapwood.nn.load import load_weights
from sapwood.runner.adapters import Shelf
from tests import models
from tests.adapters import peft
from tests.adapters.test_peft import KINDS, close, set_rows
from tests.nn import native

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(3, 199, size=24).tolist()
SLOTS, RANK = 4, 16


class Adapted:
    """A model in the stack with room for adapters, whose requests are in the slots of `native`."""

    def __init__(self, path: Path, *, build: str = "auto", ends: Sequence[str] = (), **options: Any) -> None:
        files = open_files(path, name=path.name)
        decoder = declare(files.config)
        sizes = {"num_slots": SLOTS, "rank": RANK, "num_requests": native.NUM_SLOTS}
        self.bank = Bank(decoder, **sizes, device=torch.device("cpu"), ends=ends)
        self.model = native.empty(decoder, native.machine(build), bank=self.bank, **options)
        load_weights(self.model, files)
        self._shelf = Shelf(self.bank, most=SLOTS, dtype=torch.float32)

    @torch.inference_mode()
    def logits(self, *rows: tuple[int, int, Sequence[int], Path | None]) -> list[Tensor]:
        """Of rows of (slot, start, tokens, adapter), in one step; an adapter is in the slot of its first request."""
        paths = [path for *_, path in rows]
        loads = [(slot, Adapter(adapter_id(path), str(path))) for slot, *_, path in rows if path is not None]
        has = [-1 if path is None else rows[paths.index(path)][0] for path in paths]
        slots, counts = _ints([slot for slot, *_ in rows]), _ints([len(tokens) for _, _, tokens, _ in rows])
        self._shelf.apply(Adapters(tuple(loads), slots, _ints(has)))
        zeros = np.zeros(len(rows), np.int32)
        self.bank.begin(Rows(0, 0, slots, zeros, counts, zeros, zeros.astype(np.int64)))
        batch = native.batch(self.model, [(slot, start, tokens) for slot, start, tokens, _ in rows])
        self.bank.plan(batch)
        hidden = self.model(batch)
        with self.bank.heads(slice(None)):
            return list(self.model.logits(hidden).split(counts.tolist()))

    def whole(self, path: Path | None, cuts: Sequence[int] = (10, 11)) -> Tensor:
        """Of the tokens, fed in spans that end at the cuts."""
        spans = zip([0, *cuts], [*cuts, len(TOKENS)], strict=True)
        return torch.cat([self.logits((1, start, TOKENS[start:end], path))[0] for start, end in spans])


def _ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.mark.parametrize("build", ["base", "avx2", "avx512", "neon"])
def test_kinds(base: Path, tmp_path: Path, build: str) -> None:
    model, made = models.make("llama"), Adapted(base, build=build)
    plain = peft.logits(model, None, TOKENS)
    for kind, fields in KINDS.items():
        path = peft.save(model, tmp_path / kind, **fields)
        close(made.whole(path), peft.logits(model, path, TOKENS), plain)
        assert (made.whole(None) - plain).abs().max() < 1e-4 * float(plain.abs().max())


FAMILIES: dict[str, list[str]] = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],  # one A for queries, keys and values
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # stored the other way round, an activation without a gate
    "qwen2-moe": ["q_proj", "v_proj", "o_proj", "shared_expert.gate_proj", "shared_expert.down_proj"],
    "deepseek-v2": ["q_proj", "kv_a_proj_with_mqa", "o_proj"],
    "mamba2": ["in_proj"],
    "qwen3-next": ["q_proj", "k_proj", "o_proj", "in_proj_qkvz"],  # whose queries come with gates
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    model = models.make(family)
    path = peft.save(model, tmp_path / "adapter", target_modules=FAMILIES[family])
    made = Adapted(models.save(family, tmp_path / family))
    close(made.whole(path), peft.logits(model, path, TOKENS), peft.logits(model, None, TOKENS))


def test_rows_have_the_bits_that_they_have_alone(base: Path, tmp_path: Path) -> None:
    """Of two adapters, one of which two rows have, and of none, prompts beside single tokens; and nothing is different for those without
    where there can be no adapters."""
    model, made = models.make("llama"), Adapted(base)
    one, other = (peft.save(model, tmp_path / str(rank), r=rank, seed=rank) for rank in (3, 16))
    texts = [TOKENS, TOKENS[5:], TOKENS[9:12], TOKENS[:7]]
    rows = [(slot, 0, text, path) for slot, (text, path) in enumerate(zip(texts, (one, None, other, one), strict=True))]
    together = made.logits(*rows)
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(made.logits(row)[0], found)
    assert torch.equal(native.logits(native.load(base, native.machine()), TOKENS[5:]), together[1])
    assert (together[0] - made.logits((0, 0, TOKENS, None))[0]).abs().max() > 0.05
    behind = made.logits((0, 24, [5], one), (1, 19, [5], None))
    assert torch.equal(behind[1], made.logits((1, 19, [5], None))[0])


def test_an_engine_with_adapters_is_computed_by_the_stack(base: Path) -> None:
    native.machine()
    options = {"model": str(base), "dtype": "float32", "max_model_len": 100, "enable_lora": True}
    launched = launch(from_options(options))
    launched.engine.executor.shutdown()
    (told,) = (line for line in launched.facts.decisions if line.startswith("computed_by = "))
    assert "the CPU kernels (the whole model" in told


def test_a_rounded_base(base: Path, tmp_path: Path) -> None:
    """What an adapter changes is what it changes of the rounded weights; inputs are rounded on their way to those, not to its own."""
    model, made = copy.deepcopy(models.make("llama")), Adapted(base, rounded="int8")
    for path, linear in made.bank.linears.items():
        set_rows(model, next(place for place in walk(made.bank.decoder) if place.path == path), linear)
    adapter = peft.save(model, tmp_path / "adapter", **KINDS["directions"])
    wanted = peft.logits(model, adapter, TOKENS)
    assert (made.whole(adapter) - wanted).norm() / wanted.norm() < 0.02
    assert (wanted - peft.logits(model, None, TOKENS)).norm() / wanted.norm() > 0.05
