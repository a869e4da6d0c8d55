"""A model that drafts for another, through whole engines: every request says what it says without, and a model that is its own
draft is always right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.grammar import Grammar
from sapwood.base.plan import Ints, Plan
from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.draft import Adaptive
from sapwood.executor import local
from sapwood.runner import graphs
from sapwood.runner.trail import Trail
from sapwood.runner.worker import Worker
from tests import models
from tests.engine.test_drafts import KINDS, same, say
from tests.engine.whole import prompts_that_share
from tests.nn import ggufs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PLAIN = (KINDS[0], KINDS[1], KINDS[2])
"""Kinds of sampling that change no logits, so that the same model draws the same."""


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all sizes are said to cost the same, and drafts of a model little, so that whatever may be right is fed."""

    def time_steps(worker: object, trials: Sequence[Trial], **options: Any) -> list[float]:
        return [1.04 if trial.ahead else 1.0 for trial in trials]

    monkeypatch.setattr(local, "time_steps", time_steps)


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and passes go the way of graphs, of which none is captured."""
    monkeypatch.setattr(Worker, "_graph_tokens", property(lambda worker: 64))
    monkeypatch.setattr(graphs, "_Camera", lambda device: None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "draft", "options"),
    [
        ("llama", "llama-tied", {"depth": 0, "speculation": "draft"}),
        ("llama", "llama", {"depth": 1, "max_total_tokens": 240, "page_size": 16}),
        ("llama", "gemma3", {"depth": 2, "num_speculative_tokens": 3, "page_size": 4, "max_num_batched_tokens": 32}),
        ("gemma3", "mistral", {"depth": 1, "speculation": "draft,ngram", "page_size": 4}),
        ("qwen3", "llama", {"depth": 0, "quantization": "int8", "kv_cache_dtype": "int8"}),
        ("gemma3", "gemma3", {"depth": 1, "speculation": "draft", "prefix_caching": False, "max_num_seqs": 3}),
    ],
    ids=str,
)
def test_every_request_says_what_it_says_without(
    family: str, draft: str, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    if device == "cuda" and "quantization" in options:
        pytest.skip("a format of the CPU's own kernels")
    model, small = (models.save(name, tmp_path / place / name) for place, name in (("a", family), ("b", draft)))
    shape = {name: options[name] for name in ("quantization", "kv_cache_dtype", "page_size") if name in options}
    mine = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts_that_share(10))]
    wanted, plain = say(model, mine, device=device, **shape)
    found, counters = say(model, mine, device=device, speculative_model=str(small), **options)
    same(found, wanted)
    assert 0 < counters["drafts_draft"] >= counters["accepted_drafts_draft"]
    if family == draft:
        assert counters["accepted_drafts_draft"] > 0.3 * counters["drafts_draft"]
        assert "max_total_tokens" in options or counters["steps"] < plain["steps"]


@pytest.mark.usefixtures("padded")
@pytest.mark.parametrize("depth", [0, 1])
def test_in_steps_that_are_padded_as_those_of_graphs(depth: int, tmp_path: Path) -> None:
    model = models.save("gemma3", tmp_path)
    mine = [(prompt, PLAIN[i % len(PLAIN)]) for i, prompt in enumerate(prompts_that_share(6))]
    wanted, _ = say(model, mine, page_size=4)
    options = {"speculative_model": str(model), "speculation": "draft", "num_speculative_tokens": 3, "page_size": 4}
    found, counters = say(model, mine, depth=depth, **options)
    same(found, wanted)
    assert counters["accepted_drafts_draft"] == counters["drafts_draft"] > 50


def test_both_in_files_of_quantised_weights(tmp_path: Path) -> None:
    model, small = (
        ggufs.write("llama-tied", tmp_path / f"{kind}.gguf", kind=gguf.GGMLQuantizationType[kind])
        for kind in ("Q8_0", "Q4_1")
    )
    mine = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts_that_share(6))]
    wanted, _ = say(model, mine)
    found, counters = say(model, mine, speculative_model=str(small), speculation="draft")
    same(found, wanted)
    assert counters["accepted_drafts_draft"] > 10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_that_is_its_own_draft_is_always_right(family: str, depth: int, device: str, tmp_path: Path) -> None:
    """Greedy and sampled; of the second half all prompts are cached, with the keys and values of the draft model."""
    model = models.save(family, tmp_path)
    prompts = prompts_that_share(6)
    mine = [(prompt, PLAIN[i % len(PLAIN)]) for i, prompt in enumerate(prompts)]
    options: dict[str, Any] = {
        "speculation": "draft",
        "num_speculative_tokens": 4,
        "page_size": 4 if family == "gemma3" else 16,
    }
    found, counters = say(
        model, mine * 2, device=device, speculative_model=str(model), depth=depth, max_num_seqs=6, **options
    )
    same(found[len(mine) :], found[: len(mine)])
    drafts, right = counters["drafts_draft"], counters["accepted_drafts_draft"]
    assert drafts > 100 and right >= (drafts if device == "cpu" else 0.95 * drafts)
    tokens = sum(len(tokens) for tokens, *_ in found)
    assert counters["steps"] < tokens / 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "depth", "fits"), [("llama", 0, None), ("llama", 1, None), ("gemma3", 1, None), ("llama", 2, 64)]
)
def test_it_stays_behind_while_nobody_wants_its_drafts(
    family: str, depth: int, fits: int | None, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has missed it takes in before it drafts again: as its own draft a model is always right then too."""
    asked, left = count(), []
    share, leaves = Adaptive.share, Trail.leaves

    def seldom(pace: Adaptive, slots: Ints, *others: Any) -> Ints:
        return share(pace, slots, *others) if next(asked) % 9 == 8 else np.zeros_like(slots)

    def watched(trail: Trail, plan: Plan) -> bool:
        left.append(leaves(trail, plan))
        return left[-1]

    monkeypatch.setattr(Adaptive, "share", seldom)
    monkeypatch.setattr(Trail, "leaves", watched)
    if fits is not None and device == "cpu":
        monkeypatch.setattr(Worker, "_graph_tokens", property(lambda worker: fits))
        monkeypatch.setattr(graphs, "_Camera", lambda device: None)
    model = models.save(family, tmp_path)
    mine = [(prompt, PLAIN[i % len(PLAIN)]) for i, prompt in enumerate(prompts_that_share(4))]
    wanted, _ = say(model, mine, device=device, page_size=4)
    options = {"speculation": "draft", "num_speculative_tokens": 3, "page_size": 4, "depth": depth}
    found, counters = say(model, mine, device=device, speculative_model=str(model), **options)
    same(found, wanted)
    assert (
        sum(left) > len(left) / 2 if family == "llama" else not left
    )  # what a window lets go of has to be computed in time
    drafts, right = counters["drafts_draft"], counters["accepted_drafts_draft"]
    assert drafts > 10 and right >= (drafts if device == "cpu" else 0.9 * drafts)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("jump", [True, False])
def test_requests_whose_tokens_are_masked_draft_too(tiny_model: Path, depth: int, jump: bool) -> None:
    """What may be drawn behind a draft the host says, who is told of it; others beside them draft as ever."""
    grammar = Grammar.regex("[ab]{4}-(yes|no)?[0-9]*")
    kinds = (
        SamplingParams(max_tokens=12, temperature=0.8, seed=3, grammar=grammar),
        KINDS[0],
        SamplingParams(max_tokens=16, temperature=0, allowed_token_ids=tuple(range(40, 200))),
        SamplingParams(max_tokens=16, temperature=0.9, seed=4, grammar=Grammar.json({"type": "array"})),
    )
    mine = [([70 + i, 71], kinds[i % len(kinds)]) for i in range(8)]
    wanted, _ = say(tiny_model, mine)
    options: dict[str, Any] = {"speculative_model": str(tiny_model), "speculation": "draft", "depth": depth}
    found, counters = say(tiny_model, mine, jump_forward=jump, **options)
    same(found, wanted)
    assert counters["accepted_drafts_draft"] > 0
    chosen = [(prompt, params) for prompt, params in mine if params.allowed_token_ids]
    wanted, _ = say(tiny_model, chosen)
    found, alone = say(tiny_model, chosen, **options)
    same(found, wanted)
    assert alone["drafts_draft"] > 0


def test_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = models.save("llama", tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"it has 199 tokens, and that has 258\. Take a model with the same tokenizer"
    ):
        say(tiny_model, [], speculative_model=str(other))
    same_size = tmp_path / "same"
    shutil.copytree(tiny_model, same_size)
    tokenizer = json.loads((same_size / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (same_size / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"token .* is 'b' in the one and 'a' in the other"):
        say(tiny_model, [], speculative_model=str(same_size))


def test_it_is_explained(tiny_model: Path) -> None:
    from sapwood.config.flags import from_options
    from sapwood.engine.launch import launch

    launched = launch(from_options({"model": str(tiny_model), "speculative_model": str(tiny_model), "max_num_seqs": 2}))
    told = {line.split(" = ")[0]: line for line in launched.facts.decisions}
    assert "prediction,tree,ngram,draft" in told["speculation"] and "10 ms" in told["draft_model"]
    launched.engine.executor.shutdown()
